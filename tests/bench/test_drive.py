"""The two loops, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llm_grpc.bench.drive import RequestFailed, Run
from llm_grpc.bench.entry import Entry


class Time:
    """A clock that only sleeping moves; a sleep takes `slip_s` longer than asked."""

    def __init__(self, slip_s: float = 0.0) -> None:
        self.now = 100.0
        self.slip_s = slip_s

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)  # those that can go on do so before time does
        self.now += seconds + self.slip_s


def entries(*arrivals: float) -> list[Entry]:
    return [Entry((1, 2, 3), index + 1, arrival) for index, arrival in enumerate(arrivals)]


async def answer_at_once(entry: Entry, on_tokens: Callable[[int], None]) -> int | None:
    on_tokens(entry.output_tokens)
    return None


async def test_an_open_loop_sends_at_the_arrival_times() -> None:
    time = Time()
    run = Run(answer_at_once, time, time.sleep)
    await run.open_loop(entries(0.0, 0.5, 0.5, 2.0))
    assert [(r.index, r.due_s, r.start_s) for r in run.requests] == [
        (0, 0.0, 0.0), (1, 0.5, 0.5), (2, 0.5, 0.5), (3, 2.0, 2.0)
    ]  # fmt: skip
    assert [r.token_times_s for r in run.requests] == [(0.0,), (0.5,) * 2, (0.5,) * 3, (2.0,) * 4]


async def test_a_late_client_is_late_against_the_time_that_was_due() -> None:
    time = Time(slip_s=3.0)
    run = Run(answer_at_once, time, time.sleep)
    await run.open_loop(entries(1.0, 2.0, 9.0))
    assert [(r.due_s, r.start_s) for r in run.requests] == [(1.0, 4.0), (2.0, 4.0), (9.0, 12.0)]


async def test_an_open_loop_waits_for_nobody() -> None:
    time, gate = Time(), asyncio.Event()
    in_flight = 0

    async def answer_when_all_are_there(entry: Entry, on_tokens: Callable[[int], None]) -> None:
        nonlocal in_flight
        in_flight += 1
        if in_flight == 3:
            gate.set()
        await gate.wait()
        on_tokens(1)

    run = Run(answer_when_all_are_there, time, time.sleep)
    await run.open_loop(entries(0.0, 1.0, 2.0))
    assert [r.token_times_s for r in run.requests] == [(2.0,)] * 3


async def test_a_closed_loop_keeps_its_concurrency_and_sends_all_once() -> None:
    time = Time()
    in_flight, most = 0, 0

    async def slow(entry: Entry, on_tokens: Callable[[int], None]) -> int:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        time.now += 1.0
        on_tokens(1)
        in_flight -= 1
        return 2

    run = Run(slow, time, time.sleep)
    await run.closed_loop(entries(*[0.0] * 7), 3, 0.0)
    assert most == 3
    assert sorted(r.index for r in run.requests) == list(range(7))
    assert all(r.due_s == r.start_s for r in run.requests)
    assert {r.cached_tokens for r in run.requests} == {2}


async def test_a_closed_loop_ends_with_its_duration() -> None:
    time = Time()

    async def one_second(entry: Entry, on_tokens: Callable[[int], None]) -> None:
        time.now += 1.0
        on_tokens(1)

    run = Run(one_second, time, time.sleep)
    await run.closed_loop(entries(*[0.0] * 50), 1, 3.5)
    assert [r.start_s for r in run.requests] == [0.0, 1.0, 2.0, 3.0]


async def test_an_error_is_recorded_with_the_tokens_before_it() -> None:
    async def broken(entry: Entry, on_tokens: Callable[[int], None]) -> None:
        on_tokens(2)
        raise RequestFailed("UNAVAILABLE DRAINING")

    run = Run(broken, Time())
    await run.closed_loop(entries(0.0), 1, 0.0)
    (record,) = run.requests
    assert (record.error, len(record.token_times_s), record.prompt_tokens) == ("UNAVAILABLE DRAINING", 2, 3)


async def test_what_is_cut_off_is_in_no_record() -> None:
    started = asyncio.Event()

    async def hang(entry: Entry, on_tokens: Callable[[int], None]) -> None:
        if entry.output_tokens == 1:
            on_tokens(1)
            return
        started.set()
        await asyncio.Event().wait()

    run = Run(hang, Time())
    loop = asyncio.ensure_future(run.closed_loop(entries(0.0, 0.0), 1, 0.0))
    await started.wait()
    loop.cancel()
    await asyncio.wait([loop])
    assert [r.index for r in run.requests] == [0]
