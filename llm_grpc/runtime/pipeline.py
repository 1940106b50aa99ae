"""Micro-batches on their way through the stages of a model, several at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event

Cell = Callable[[int, int], None]
"""Computes a micro-batch, the first argument, in a stage, the second."""


class Pipeline:
    """A thread for each stage, which takes the micro-batches in order, after the stage before."""

    def __init__(self, num_stages: int) -> None:
        self._workers = [ThreadPoolExecutor(1, f"stage-{stage}") for stage in range(num_stages)]

    def run(self, num_batches: int, cell: Cell) -> None:
        """Compute every micro-batch in every stage; nothing runs any more when this returns or raises.

        Raises:
            Exception: what a cell raised; cells that had not begun by then are left out.
        """
        failed = Event()
        futures: list[Future[None]] = []
        for batch in range(num_batches):
            before: Future[None] | None = None
            for stage, worker in enumerate(self._workers):
                before = worker.submit(_compute, cell, batch, stage, before, failed)
                futures.append(before)
        try:
            wait(futures)
        finally:
            failed.set()
            wait(futures)
        for future in futures:
            future.result()


def _compute(cell: Cell, batch: int, stage: int, before: Future[None] | None, failed: Event) -> None:
    if before:
        wait([before])
    if failed.is_set():
        return
    try:
        cell(batch, stage)
    except BaseException:
        failed.set()
        raise


def run_in_turn(num_batches: int, num_stages: int, cell: Cell) -> None:
    """The same in this thread, one micro-batch after the other."""
    for batch in range(num_batches):
        for stage in range(num_stages):
            cell(batch, stage)
