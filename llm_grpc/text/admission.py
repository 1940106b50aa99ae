"""The admission bound: how many requests the server holds at once, counted before any work is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from llm_grpc.errors import QueueFull

_SMOOTHING = 0.1
"""Weight of the newest request in the running mean of request durations."""

_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 30.0


class Admission:
    """Hands out at most ``max_running + max_waiting`` permits. Lives on the event loop; no locks.

    ``permit`` is for a call that is refused where there is none, ``turn`` for the parts of a call that wait
    instead, first come, first served. Who can wait leaves half of the waiting places to those who cannot: a
    batch, however long, is no reason to refuse others. ``held_are`` says in a refusal what holds them.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
        held_are: str = "requests run or wait",
    ) -> None:
        self.max_running = max_running
        self._limit = max_running + max_waiting
        self._limit_of_turns = self._limit - max_waiting // 2
        self._held = 0
        self._clock = clock
        self._held_are = held_are
        self._mean_request_s = 1.0
        self._turns: dict[asyncio.Future[None], int] = {}
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
        self._take(count)
        with self._giving_back(count):
            yield

    @asynccontextmanager
    async def turn(self, count: int = 1) -> AsyncIterator[None]:
        """Hold ``count`` permits, as many as there are at most, once it is this one's turn."""
        if self._turns or not self._has_room(count):
            await self._wait(count)
        else:
            self._take(count)
        with self._giving_back(count):
            yield

    async def _wait(self, count: int) -> None:
        """Wait until the permits are taken for this one."""
        turn = asyncio.get_running_loop().create_future()
        self._turns[turn] = count
        try:
            await turn
        except asyncio.CancelledError:
            if self._turns.pop(turn, None):
                self._let_in()  # those behind it may fit
            else:
                self._give_back(count)
            raise

    def _let_in(self) -> None:
        """Take permits for those whose turn it is; one that was cancelled takes itself away."""
        for turn, count in [*self._turns.items()]:
            if turn.done():
                continue
            if not self._has_room(count):
                return
            del self._turns[turn]
            self._take(count)
            turn.set_result(None)

    def _has_room(self, count: int) -> bool:
        return not self._held or self._held + count <= self._limit_of_turns

    def _take(self, count: int) -> None:
        self._held += count
        self._idle.clear()

    def _give_back(self, count: int) -> None:
        self._held -= count
        self._let_in()
        if not self._held:
            self._idle.set()

    @contextmanager
    def _giving_back(self, count: int) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        finally:
            self._mean_request_s += _SMOOTHING * (self._clock() - started - self._mean_request_s)
            self._give_back(count)

    def _retry_after_s(self) -> float:
        """Seconds until a permit is likely: a running request's mean share of its slot."""
        return min(max(self._mean_request_s / self.max_running, _MIN_RETRY_S), _MAX_RETRY_S)
