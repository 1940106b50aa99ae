"""The same request again: it joins the one that is computed, or gets the answer that was given."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

_Message = TypeVar("_Message", bound=Message)
Start = Callable[[], AsyncGenerator[_Message, None]]

_MESSAGE_OVERHEAD = 64
"""Bytes that a kept message takes beside its own: what Python needs to hold them (measured: 56)."""


class Key(NamedTuple):
    """What makes two requests the same one."""

    identity: str
    method: str
    request_id: str
    digest: bytes

    @classmethod
    def of(cls, identity: str, method: str, request_id: str, request: Message) -> Key:
        """The key of a request as it was sent."""
        data = request.SerializeToString(deterministic=True)
        return cls(identity, method, request_id, hashlib.sha256(data).digest())


class _Kept(NamedTuple):
    """A whole answer, as bytes: they are a tenth of the messages."""

    kind: type[Any]
    messages: tuple[bytes, ...]
    num_bytes: int
    until_s: float


class Replays:
    """Computations that may have several readers, and what was answered in the last ``window_s`` seconds.

    Each reader gets all messages of an answer from the first one on, each at its own pace: a computation
    waits for none of them, so what it holds is as long as its answer may be. It ends early where its last
    reader leaves. One that fails tells its readers why, and is forgotten. Kept answers take ``max_bytes`` at
    most: the one that ended first goes first. Lives on the event loop.
    """

    def __init__(self, window_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s, self._max_bytes, self._clock = window_s, max_bytes, clock
        self._running: dict[Key, _Computation[Any]] = {}
        self._kept: dict[Key, _Kept] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_bytes = 0

    def read(self, key: Key, start: Start[_Message]) -> AsyncGenerator[_Message, None]:
        """The messages of one answer; ``start`` computes it where nobody has asked before."""
        if not self._window_s:
            return start()
        self._forget()
        kept = self._kept.get(key)
        return _replayed(kept) if kept else self._joined(key, start)

    async def _joined(self, key: Key, start: Start[_Message]) -> AsyncGenerator[_Message, None]:
        computation = self._running.get(key)
        if computation is None:
            computation = self._running[key] = _Computation()
            computation.task = asyncio.create_task(self._compute(key, computation, start))
            self._tasks.add(computation.task)
            computation.task.add_done_callback(self._tasks.discard)
        computation.num_readers += 1
        try:
            async for message in computation.read():
                yield message
        finally:
            computation.num_readers -= 1
            if not computation.num_readers and not computation.is_over:
                self._end(key, computation)
                if computation.task:
                    computation.task.cancel()

    async def _compute(self, key: Key, computation: _Computation[_Message], start: Start[_Message]) -> None:
        try:
            async with aclosing(start()) as messages:
                async for message in messages:
                    computation.add(message)
            computation.end()
            if self._running.get(key) is computation:
                self._keep(key, computation.messages)
        except BaseException as error:
            computation.end(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._end(key, computation)

    def _end(self, key: Key, computation: _Computation[Any]) -> None:
        """Nobody joins ``computation`` from now on. One that its readers left may have an heir already."""
        if self._running.get(key) is computation:
            del self._running[key]

    def _keep(self, key: Key, messages: list[_Message]) -> None:
        data = tuple(message.SerializeToString() for message in messages)
        num_bytes = sum(len(each) + _MESSAGE_OVERHEAD for each in data)
        self._kept[key] = _Kept(type(messages[0]), data, num_bytes, self._clock() + self._window_s)
        self.num_bytes += num_bytes
        self._forget()

    def _forget(self) -> None:
        """Forget what is too old, or too much. The answers stand in the order in which they ended."""
        now = self._clock()
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if now < kept.until_s and self.num_bytes <= self._max_bytes:
                return
            del self._kept[key]
            self.num_bytes -= kept.num_bytes


class _Computation(Generic[_Message]):
    """The messages of one answer so far."""

    def __init__(self) -> None:
        self.messages: list[_Message] = []
        self.num_readers = 0
        self.is_over = False
        self.task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def add(self, message: _Message) -> None:
        """One more message has come."""
        self.messages.append(message)
        self._tell()

    def end(self, error: BaseException | None = None) -> None:
        """No more comes."""
        self.is_over, self._error = True, error
        self._tell()

    async def read(self) -> AsyncGenerator[_Message, None]:
        """All messages; then what the computation failed with is raised."""
        at = 0
        while at < len(self.messages) or not self.is_over:
            if at < len(self.messages):
                yield self.messages[at]
                at += 1
            else:
                self._waiting.append(asyncio.get_running_loop().create_future())
                await self._waiting[-1]
        if self._error:
            raise self._error

    def _tell(self) -> None:
        """Wake the readers that wait."""
        for waiting in self._waiting:
            if not waiting.done():  # cancelled, with its reader
                waiting.set_result(None)
        self._waiting.clear()


async def _replayed(kept: _Kept) -> AsyncGenerator[Any, None]:
    for data in kept.messages:
        yield kept.kind.FromString(data)
