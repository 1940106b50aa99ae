"""The runs: in each round every contestant does every work once, each time in a fresh process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.peers.environments import process_environment
from benchmarks.peers.figures import Figures, figures
from benchmarks.peers.record import BadRecord, load_record

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A contestant that is ready: a command line that lacks the work and the files."""

    name: str
    command: tuple[str, ...]
    """Interpreter and script."""
    model: Path


@dataclass(frozen=True)
class Outcome:
    """What one run gave: figures, or why there are none."""

    name: str
    work: str
    round: int
    figures: Figures = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    trace: Path
    threads: int = 2
    timeout_s: float = 1800.0
    is_smoke: bool = False


def order(contestants: Sequence[T], number: int) -> list[T]:
    """Forwards, then backwards, and so on: what drifts during a round hits both ends of the list alike."""
    return list(contestants) if number % 2 == 0 else list(reversed(contestants))


def run_rounds(
    entries: Sequence[Entry], works: Sequence[str], rounds: int, settings: Settings
) -> Iterator[Outcome]:
    """Every outcome as it comes. A contestant that fails fails alone."""
    for number in range(rounds):
        for work in works:
            for entry in order(entries, number):
                yield run_once(entry, work, number, settings)


def run_once(entry: Entry, work: str, number: int, settings: Settings) -> Outcome:
    """One work by one contestant."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "record.json")
        error = _call(_command(entry, work, path, settings), settings)
        if error is not None:
            return Outcome(entry.name, work, number, error=error)
        try:
            record = load_record(path)
        except BadRecord as fault:
            return Outcome(entry.name, work, number, error=str(fault))
    return Outcome(entry.name, work, number, figures(record), record.versions)


def _command(entry: Entry, work: str, record: Path, settings: Settings) -> list[str]:
    files = ["--trace", str(settings.trace), "--record", str(record)]
    command = [*entry.command, work, str(entry.model), *files, "--threads", str(settings.threads)]
    return [*command, "--smoke"] if settings.is_smoke else command


def _call(command: Sequence[str], settings: Settings) -> str | None:
    """Run it to its end; the reason where that was no good one."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=process_environment(settings.threads),
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(settings.timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        if code is None:
            return f"it did not end within {settings.timeout_s:g} s"
        log.seek(0)
        return None if code == 0 else _last_line(log.read(), code)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Servers that it has started must not run beside the next one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(text: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    why = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{why}: {lines[-1]}" if lines else why
