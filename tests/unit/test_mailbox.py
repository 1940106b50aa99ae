"""What is handed over when: the first token and the end at once, the rest an interval apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from llm_grpc.engine.mailbox import Mailbox
from llm_grpc.engine.request import FailedEvent, TokenEvent
from llm_grpc.errors import EngineFailed
from llm_grpc.sampling_params import FinishReason


class Timer:
    """A callback that waits for its time."""

    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s, self.callback, self.cancelled = at_s, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The event loop with a time of its own."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    def go_to(self, now_s: float, early_s: float = 0.0) -> None:
        """Let time pass, and what waits for it, or nearly, happen."""
        self.now_s = now_s
        until_s = now_s + early_s
        due = [timer for timer in self.timers if timer.at_s <= until_s and not timer.cancelled]
        self.timers = [timer for timer in self.timers if timer.at_s > until_s]
        for timer in due:
            timer.callback()


class Reader:
    """Takes for as long as there is something, and remembers when."""

    def __init__(self, interval_s: float) -> None:
        self.clock = Clock()
        self.mailbox = Mailbox(cast("Any", self.clock), interval_s)
        self.taken: list[tuple[float, list[int]]] = []
        self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while True:
            tokens = [event.token_id for event in await self.mailbox.take()]
            self.taken.append((self.clock.now_s, tokens))

    async def put(self, at_s: float, *tokens: int, reason: FinishReason | None = None) -> None:
        self.clock.go_to(at_s)
        for token in tokens:
            self.mailbox.put(TokenEvent(1, token, reason))
        await self.turn()

    async def at(self, at_s: float) -> None:
        self.clock.go_to(at_s)
        await self.turn()

    @staticmethod
    async def turn() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def failed(self) -> bool:
        """Whether it ended by a failure; otherwise it still waits, and is ended here."""
        await self.turn()
        if not self._task.done():
            self._task.cancel()
            return False
        with pytest.raises(EngineFailed):
            self._task.result()
        return True


async def test_without_an_interval_every_step_is_handed_over() -> None:
    reader = Reader(0.0)
    for step in range(4):
        await reader.put(100.0 + step / 1000, step)
    assert [tokens for _, tokens in reader.taken] == [[0], [1], [2], [3]]
    assert not reader.clock.timers
    assert not await reader.failed()


async def test_an_interval_gathers_what_came_in_it_and_waits_no_longer() -> None:
    reader = Reader(1.0)
    await reader.put(100.0, 0)
    assert reader.taken == [(100.0, [0])], "the first token waits for nothing"
    await reader.put(100.3, 1)
    await reader.put(100.9, 2)
    assert len(reader.taken) == 1
    await reader.at(101.0)
    assert reader.taken[1:] == [(101.0, [1, 2])]
    await reader.put(101.5, 3)
    await reader.at(102.0)
    assert reader.taken[2:] == [(102.0, [3])]
    await reader.put(105.0, 4)
    assert reader.taken[3:] == [(105.0, [4])], "an interval that has passed holds nothing back"
    assert not await reader.failed()


async def test_the_end_waits_for_nothing() -> None:
    reader = Reader(1.0)
    await reader.put(100.0, 0)
    await reader.put(100.1, 1)
    await reader.put(100.2, 2, reason=FinishReason.LENGTH)
    assert reader.taken == [(100.0, [0]), (100.2, [1, 2])]
    await reader.at(101.0)  # the timer that nobody needs any more opens nothing
    assert len(reader.taken) == 2
    assert not await reader.failed()


async def test_a_failure_waits_for_nothing_and_comes_after_the_tokens() -> None:
    reader = Reader(1.0)
    await reader.put(100.0, 0)
    await reader.put(100.1, 1)
    reader.mailbox.put(FailedEvent(1))
    assert await reader.failed()
    assert reader.taken == [(100.0, [0]), (100.1, [1])]


async def test_a_timer_that_comes_early_leaves_none_behind() -> None:
    """uvloop counts in whole milliseconds."""
    reader = Reader(1.0)
    await reader.put(100.0, 0)
    await reader.put(100.5, 1)
    reader.clock.go_to(100.9996, early_s=0.001)
    await reader.put(100.9997, 2)  # the reader was woken and has not come yet
    await reader.at(102.5)
    await reader.put(103.0, 3)
    assert [tokens for _, tokens in reader.taken] == [[0], [1, 2], [3]]
    assert not await reader.failed()


@pytest.mark.parametrize("interval_s", [0.0, 1.0])
async def test_a_slow_reader_gets_all_that_has_come_at_once(interval_s: float) -> None:
    clock = Clock()
    mailbox = Mailbox(cast("Any", clock), interval_s)
    mailbox.put(TokenEvent(1, 0))
    assert [e.token_id for e in await mailbox.take()] == [0]
    for token in range(1, 50):
        clock.go_to(100.0 + token)
        mailbox.put(TokenEvent(1, token))
    assert [e.token_id for e in await mailbox.take()] == list(range(1, 50))
