"""Sends a workload and notes when tokens come. Knows no transport: a ``Send`` does one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from llm_grpc.bench.entry import Entry
from llm_grpc.bench.record import RequestRecord

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class RequestFailed(Exception):
    """A request was not answered whole. The message is its entry in the count of errors."""


class Send(Protocol):
    """Sends one request and ends with its answer."""

    async def __call__(self, entry: Entry, on_tokens: Callable[[int], None]) -> int | None:
        """Call `on_tokens` with the number of tokens of each message as it comes.

        Returns:
            The prompt tokens that the server had cached; None where it does not say.

        Raises:
            RequestFailed: anything but a whole answer.
        """


class Run:
    """One run: its clock and what it has measured so far."""

    def __init__(self, send: Send, clock: Clock = time.perf_counter, sleep: Sleep = asyncio.sleep) -> None:
        self._send, self._clock, self._sleep = send, clock, sleep
        self._began = clock()
        self.requests: list[RequestRecord] = []

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._began

    async def open_loop(self, entries: Iterable[Entry]) -> None:
        """Send each entry at its arrival time, whatever became of the others; end with the last answer."""
        async with asyncio.TaskGroup() as answers:
            for index, entry in enumerate(entries):
                while (early_s := entry.arrival_s - self.now_s()) > 0:  # a timer may fire a little early
                    await self._sleep(early_s)
                await asyncio.sleep(0)  # those before it are sent before it, also where all are late
                answers.create_task(self._request(index, entry, entry.arrival_s))

    async def closed_loop(self, entries: Iterable[Entry], concurrency: int, duration_s: float) -> None:
        """Keep `concurrency` requests in flight until the entries or the seconds (0 is no limit) end."""
        numbered = enumerate(entries)

        async def place() -> None:
            for index, entry in numbered:
                if duration_s and self.now_s() >= duration_s:
                    return
                await self._request(index, entry, self.now_s())

        async with asyncio.TaskGroup() as places:
            for _ in range(concurrency):
                places.create_task(place())

    async def _request(self, index: int, entry: Entry, due_s: float) -> None:
        start_s = self.now_s()
        times: list[float] = []
        error = cached = None
        try:
            cached = await self._send(entry, lambda count: times.extend([self.now_s()] * count))
        except RequestFailed as failure:
            error = str(failure)
        self.requests.append(
            RequestRecord(
                index=index,
                due_s=due_s,
                start_s=start_s,
                token_times_s=tuple(times),
                prompt_tokens=len(entry.prompt),
                error=error,
                cached_tokens=cached,
            )
        )
