"""What an export or a verification says while it works: bars on a terminal, lines in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Where work says how far it is. Stages come one after the other; a part is of the present stage."""

    def stage(self, name: str) -> None:
        """The stage before is done and ``name`` begins."""

    def part(self, done: int, total: int) -> None:
        """``done`` of ``total`` parts of the stage are done."""

    def say(self, text: str) -> None:
        """One line for the user."""


class Lines:
    """A line for each stage and none for its parts."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._stage = 0

    def stage(self, name: str) -> None:
        """Log the stage's number and name."""
        self._stage += 1
        log.info("[%d/%d] %s", self._stage, self._num_stages, name)

    def part(self, done: int, total: int) -> None:
        """Say nothing."""

    def say(self, text: str) -> None:
        """Log the line."""
        log.info("%s", text)


class _Terminal:
    """A bar for each stage; one without parts moves until the next begins."""

    def __init__(self, bars: Bars, num_stages: int) -> None:
        self._bars = bars
        self._num_stages = num_stages
        self._tasks: list[TaskID] = []

    def stage(self, name: str) -> None:
        self.finish()
        number = f"[{len(self._tasks) + 1}/{self._num_stages}]"
        self._tasks.append(self._bars.add_task(f"{number} {name}", total=None))

    def part(self, done: int, total: int) -> None:
        self._bars.update(self._tasks[-1], completed=done, total=total)

    def say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)

    def finish(self) -> None:
        if self._tasks:
            self._bars.update(self._tasks[-1], completed=1, total=1)
            self._bars.stop_task(self._tasks[-1])


@contextmanager
def show_progress(num_stages: int) -> Iterator[Progress]:
    """Progress on stderr: bars where it is a terminal, lines through ``logging`` otherwise."""
    if not sys.stderr.isatty():
        yield Lines(num_stages)
        return
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False), BarColumn())
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        terminal = _Terminal(bars, num_stages)
        yield terminal
        terminal.finish()
