"""The messages of one stream, as the clients hand them out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from llm_grpc.client.errors import translated
from llm_grpc.v1 import llm_pb2

M_co = TypeVar("M_co", covariant=True)


class _Call(Protocol[M_co]):
    """What a blocking stream needs of gRPC's call."""

    def __next__(self) -> M_co: ...

    def cancel(self) -> object: ...


class _Stream(Iterator[M_co]):
    """The messages of one stream. Closing it, leaving its ``with`` or dropping it cancels the call."""

    def __init__(self, call: _Call[M_co]) -> None:
        self._call = call
        self._closed = False

    def __next__(self) -> M_co:
        if self._closed:
            raise StopIteration
        with translated():
            return next(self._call)

    def close(self) -> None:
        """Cancel the call unless it has ended; the iteration ends."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._call.cancel()


class TextStream(_Stream[llm_pb2.GenerateTextResponse]):
    """The messages of ``Client.stream``. Closing it, leaving its ``with`` or dropping it cancels the call."""


class ChatStream(_Stream[llm_pb2.ChatResponse]):
    """The messages of ``Client.stream_chat``; it ends as a ``TextStream`` does."""


class _AsyncStream(AsyncIterator[M_co]):
    """The messages of one stream. Closing it, leaving its ``async with`` or dropping it cancels the call."""

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, M_co]) -> None:
        self._call = call
        self._messages = aiter(call)
        self._closed = False

    async def __anext__(self) -> M_co:
        if self._closed:
            raise StopAsyncIteration
        with translated():
            return await anext(self._messages)

    def close(self) -> None:
        """Cancel the call unless it has ended; the iteration ends."""
        self._closed = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._call.cancel()


class AsyncTextStream(_AsyncStream[llm_pb2.GenerateTextResponse]):
    """The messages of ``AsyncClient.stream``. Closing it, leaving its ``async with`` or dropping it cancels
    the call.
    """


class AsyncChatStream(_AsyncStream[llm_pb2.ChatResponse]):
    """The messages of ``AsyncClient.stream_chat``; it ends as an ``AsyncTextStream`` does."""
