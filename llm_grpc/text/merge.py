"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def merged(
    streams: Sequence[AsyncGenerator[Item, None]], *, first_leads: bool = False
) -> AsyncGenerator[Item, None]:
    """Yield what ``streams`` yield as it comes, with ``first_leads`` nothing before an item of the first one.

    A stream is asked for its next item once the reader has taken the one before. Items are not None. An
    exception of one stream ends all, and so does closing the iterator: all have been closed when it returns.
    """
    tasks = {index: asyncio.ensure_future(anext(stream, None)) for index, stream in enumerate(streams)}
    try:
        if first_leads:
            await asyncio.wait([tasks[0]])
        while tasks:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            for index in [index for index, task in tasks.items() if task.done()]:
                item = tasks.pop(index).result()
                if item is not None:
                    yield item
                    tasks[index] = asyncio.ensure_future(anext(streams[index], None))
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for stream in streams:
            await stream.aclose()
