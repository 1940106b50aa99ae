"""A request that is ended from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from llm_grpc.errors import Cancelled
from llm_grpc.text.cancellation import Cancellation, until_cancelled
from tests.unit.scripted_runner import HANG_S


async def test_what_is_watched_ends_at_once_and_only_that() -> None:
    cancellation = Cancellation()
    steps: list[str] = []

    async def wait() -> None:
        async with cancellation.watched():
            steps.append("waits")
            await asyncio.sleep(HANG_S)

    async def work() -> None:
        with pytest.raises(Cancelled):
            await wait()
        steps.append("goes on")
        await asyncio.sleep(0)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    cancellation.cancel()
    cancellation.cancel()
    await task
    assert steps == ["waits", "goes on"]
    assert task.cancelling() == 0
    with pytest.raises(Cancelled):
        async with cancellation.watched():
            steps.append("never")
    assert "never" not in steps


async def test_a_task_that_is_itself_cancelled_stays_that() -> None:
    cancellation = Cancellation()

    async def work() -> None:
        async with cancellation.watched():
            await asyncio.sleep(HANG_S)

    for first, second in ((0, 1), (1, 0)):
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        ways = (cancellation.cancel, task.cancel)
        ways[first]()
        ways[second]()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancellation = Cancellation()


async def test_a_timeout_of_the_work_itself_is_no_cancellation() -> None:
    with pytest.raises(TimeoutError):
        async with Cancellation().watched():
            raise TimeoutError


async def test_all_that_one_request_waits_for_ends() -> None:
    cancellation = Cancellation()

    async def wait() -> None:
        async with cancellation.watched():
            await asyncio.sleep(HANG_S)

    tasks = [asyncio.ensure_future(wait()) for _ in range(3)]
    await asyncio.sleep(0)
    cancellation.cancel()
    assert [type(found) for found in await asyncio.gather(*tasks, return_exceptions=True)] == [Cancelled] * 3


async def numbers(closed: list[bool], more: asyncio.Event) -> AsyncGenerator[list[int], None]:
    try:
        yield [1]
        yield [2, 3]
        await more.wait()
        yield [4]
    finally:
        closed.append(True)


async def test_batches_come_until_the_end() -> None:
    closed, more = list[bool](), asyncio.Event()
    more.set()
    batches = until_cancelled(numbers(closed, more), Cancellation())
    assert [list(batch) async for batch in batches] == [[1], [2, 3], [4]]
    assert closed == [True]


@pytest.mark.parametrize("waits", [True, False])
async def test_an_empty_batch_stands_for_what_was_cancelled(waits: bool) -> None:
    """Whether the reader waits for a batch at that moment, or is busy with one."""
    closed, cancellation = list[bool](), Cancellation()
    batches = until_cancelled(numbers(closed, asyncio.Event()), cancellation)
    assert await anext(batches) == [1]
    assert await anext(batches) == [2, 3]
    if waits:
        last = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        cancellation.cancel()
        assert await last == ()
    else:
        cancellation.cancel()
        assert await anext(batches) == ()
    assert [batch async for batch in batches] == []
    assert closed == [True]


async def test_what_was_cancelled_before_it_began_never_begins() -> None:
    closed, cancellation = list[bool](), Cancellation()
    cancellation.cancel()
    assert [batch async for batch in until_cancelled(numbers(closed, asyncio.Event()), cancellation)] == [()]
    assert closed == []


async def test_leaving_early_closes_the_source() -> None:
    closed, cancellation = list[bool](), Cancellation()
    batches = until_cancelled(numbers(closed, asyncio.Event()), cancellation)
    await anext(batches)
    await batches.aclose()
    assert closed == [True]
