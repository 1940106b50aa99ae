"""What the engine has said to one reader and the reader has not taken yet."""

from __future__ import annotations

import asyncio

from llm_grpc.engine.request import Event, FailedEvent, TokenEvent
from llm_grpc.errors import EngineFailed


class Mailbox:
    """The events of one request, at most ``max_tokens`` of them. Lives on ``loop``.

    The first token and the end are handed over at once, what comes between them ``interval_s`` after the
    hand-over before it at the earliest, and as soon as that. Whatever has come by then goes together, so a
    reader that is slower than the engine gets more at a time, never later.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float = 0.0) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._due_s = 0.0
        self._due: asyncio.TimerHandle | None = None
        self._events: list[TokenEvent] = []
        self._failed = False
        self._is_open = False
        self._reader: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, FailedEvent):
            self._failed = is_end = True
        else:
            self._events.append(event)
            is_end = event.finish_reason is not None
        # A loop may call a little early: no timer may outlive the hand-over that it was for.
        if self._is_open:
            return
        if is_end or not self._interval_s or self._loop.time() >= self._due_s:
            self._open()
        elif self._due is None:
            self._due = self._loop.call_at(self._due_s, self._open)

    async def take(self) -> list[TokenEvent]:
        """Return what came since the last time; a failure is raised after the tokens before it.

        Raises:
            EngineFailed: the engine failed, and all that came before has been taken.
        """
        if not self._is_open:
            self._reader = self._loop.create_future()
            await self._reader
        self._is_open = self._failed  # nothing comes after a failure that would open it again
        if not self._events:
            raise EngineFailed("the engine failed while it computed this request")
        if self._interval_s:
            self._due_s = self._loop.time() + self._interval_s
        events, self._events = self._events, []
        return events

    def _open(self) -> None:
        """Let the reader take what is there."""
        if self._due:
            self._due.cancel()
            self._due = None
        self._is_open = True
        if self._reader and not self._reader.done():  # done: woken already, or cancelled
            self._reader.set_result(None)
