"""Several streams as one: what comes first, and who is closed when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from llm_grpc.text.merge import merged


class Stream:
    """Yields what the test puts in; None ends it, an exception is raised."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.num_asked = 0
        self.is_read = asyncio.Event()
        self.closed = False

    def put(self, *items: str | Exception | None) -> Stream:
        for item in items:
            self.items.put_nowait(item)
        return self

    async def read(self) -> AsyncGenerator[str, None]:
        try:
            while True:
                self.num_asked += 1
                self.is_read.set()
                item = await self.items.get()
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


async def test_items_come_as_they_are_there_and_each_stream_keeps_its_order() -> None:
    first, second = Stream(), Stream().put("b0", "b1")
    async with aclosing(merged([first.read(), second.read()])) as items:
        assert [await anext(items), await anext(items)] == ["b0", "b1"]
        second.put(None)
        first.put("a0", "a1", None)
        assert [item async for item in items] == ["a0", "a1"]
    assert first.closed
    assert second.closed


async def test_the_first_stream_leads_where_it_is_asked_to() -> None:
    first, second = Stream(), Stream().put("b0", None)
    async with aclosing(merged([first.read(), second.read()], first_leads=True)) as items:
        lead = asyncio.ensure_future(anext(items))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not lead.done()
        first.put("a0", None)
        assert [await lead, *[item async for item in items]] == ["a0", "b0"]


async def test_a_stream_is_not_asked_for_more_than_the_reader_takes() -> None:
    streams = [Stream().put("0", "1", "2", None) for _ in range(3)]
    async with aclosing(merged([stream.read() for stream in streams])) as items:
        await anext(items)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [stream.num_asked for stream in streams] == [1, 1, 1]
        assert len([item async for item in items]) == 8


async def test_an_exception_of_one_ends_all() -> None:
    first, second, third = Stream().put("a0"), Stream().put(OSError("broken")), Stream()
    streams = [first, second, third]
    items = merged([stream.read() for stream in streams])
    assert await anext(items) == "a0"
    with pytest.raises(OSError, match="broken"):
        await anext(items)
    assert all(stream.closed for stream in streams)


@pytest.mark.parametrize("num_taken", [0, 1, 2])
async def test_closing_closes_all_that_have_begun(num_taken: int) -> None:
    streams = [Stream().put("a"), Stream().put("b"), Stream()]
    items = merged([stream.read() for stream in streams])
    for _ in range(num_taken):
        await anext(items)
    await items.aclose()
    assert all(stream.closed or not stream.num_asked for stream in streams)


async def test_a_reader_that_is_cancelled_closes_all() -> None:
    streams = [Stream(), Stream()]

    async def read() -> None:
        async with aclosing(merged([stream.read() for stream in streams])) as items:
            await anext(items)

    reader = asyncio.ensure_future(read())
    for stream in streams:
        await stream.is_read.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert all(stream.closed for stream in streams)
