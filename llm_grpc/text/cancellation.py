"""A request that its caller ends from outside, while others read what there is of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from llm_grpc.errors import Cancelled

_Batch = TypeVar("_Batch", bound=Sequence[object])


class Cancellation:
    """Whether one request was cancelled. Lives on the event loop.

    What waits inside ``watched`` stops waiting at once. No task watches: a scope of asyncio.timeout that has
    no time is what waits, and cancelling makes its time now.
    """

    def __init__(self) -> None:
        self.is_cancelled = False
        self._scopes: set[asyncio.Timeout] = set()

    def cancel(self) -> None:
        """Cancel the request; again is nothing."""
        if self.is_cancelled:
            return
        self.is_cancelled = True
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            scope.reschedule(now)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Hold a part of the request's work that ends where the request is cancelled.

        Raises:
            Cancelled: it was cancelled, before or meanwhile.
        """
        if self.is_cancelled:
            raise Cancelled
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise Cancelled from None


async def until_cancelled(
    batches: AsyncGenerator[_Batch, None], cancellation: Cancellation
) -> AsyncGenerator[_Batch | tuple[()], None]:
    """``batches``, none of them empty; where the request is cancelled, an empty one in place of the rest.

    ``batches`` is closed at the end.
    """
    async with aclosing(batches):
        while batch := await _next(batches, cancellation):
            yield batch
        if batch is not None:
            yield ()


async def _next(
    batches: AsyncGenerator[_Batch, None], cancellation: Cancellation
) -> _Batch | tuple[()] | None:
    """The next batch; an empty one where the request is cancelled, None at the end."""
    try:
        async with cancellation.watched():
            return await anext(batches, None)
    except Cancelled:
        return ()
