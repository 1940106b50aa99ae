"""A thread that outlives what it is first asked to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")


class Worker:
    """One thread, which does what it is given in turn until ``end``.

    What a GPU has recorded for one thread it records again for another: who warms a runner up has to be who
    runs its steps. The process ends without waiting for this thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def submit(self, function: Callable[[], _T]) -> Future[_T]:
        """Call ``function`` after what was given before; what it returns or raises."""
        future: Future[_T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                future.set_exception(error)

        future.set_running_or_notify_cancel()
        self._calls.put(call)
        return future

    def end(self) -> None:
        """End the thread after what was given to it."""
        self._calls.put(None)

    def join(self) -> None:
        """Wait for that."""
        self._thread.join()

    def _run(self) -> None:
        while call := self._calls.get():
            call()
