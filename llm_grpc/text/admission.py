"""The admission bound: how many requests the server holds at once, counted before any work is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm_grpc.errors import QueueFull

_SMOOTHING = 0.1
"""Weight of the newest request in the running mean of request durations."""

_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 30.0


class Admission:
    """Hands out at most ``max_running + max_waiting`` permits. Lives on the event loop; no locks.

    ``held_are`` says in a refusal what holds them.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
        held_are: str = "requests run or wait",
    ) -> None:
        self._max_running = max_running
        self._limit = max_running + max_waiting
        self._held = 0
        self._clock = clock
        self._held_are = held_are
        self._mean_request_s = 1.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def held(self) -> int:
        """Permits handed out and not yet given back."""
        return self._held

    @property
    def limit(self) -> int:
        """Permits that there are."""
        return self._limit

    async def idle(self) -> None:
        """Wait until no permit is held."""
        await self._idle.wait()

    @contextmanager
    def permit(self, count: int = 1) -> Iterator[None]:
        """Hold ``count`` permits. Raises ``QueueFull`` at once where fewer are left."""
        if self._held + count > self._limit:
            more = f", this one has {count} sequences" if count > 1 else ""
            raise QueueFull(
                f"{self._held} {self._held_are}{more}, and the limit is {self._limit}",
                self._retry_after_s(),
            )
        self._held += count
        self._idle.clear()
        started = self._clock()
        try:
            yield
        finally:
            self._held -= count
            if not self._held:
                self._idle.set()
            self._mean_request_s += _SMOOTHING * (self._clock() - started - self._mean_request_s)

    def _retry_after_s(self) -> float:
        """Seconds until a permit is likely: a running request's mean share of its slot."""
        return min(max(self._mean_request_s / self._max_running, _MIN_RETRY_S), _MAX_RETRY_S)
