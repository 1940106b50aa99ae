"""What a request says about itself as a call: its name, its place in the queue, and what comes of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

from google.protobuf.message import Message

from llm_grpc.config import MAX_PRIORITY, MAX_REQUEST_ID_BYTES
from llm_grpc.errors import InvalidParameter
from llm_grpc.server.fields import whole_in_range
from llm_grpc.server.identity import Identity, current_identity
from llm_grpc.server.replays import Key, Replays
from llm_grpc.text.cancellation import Cancellation
from llm_grpc.text.text_request import TextRequest

_Response = TypeVar("_Response", bound=Message)


class CallFields(Protocol):
    """What the requests of all generating methods have."""

    @property
    def request_id(self) -> str:
        """The caller's name for the request."""
        ...

    @property
    def priority(self) -> int:
        """Its place among those that wait."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One computation. ``priority`` is at most the caller's; only a request with an id can be cancelled."""

    request_id: str
    priority: int
    cancellation: Cancellation | None = None

    def asked(self, request: TextRequest) -> TextRequest:
        """``request``, which has neither yet, with the priority and the cancellation of this call."""
        if not self.priority and self.cancellation is None:
            return request
        return replace(request, priority=self.priority, cancellation=self.cancellation)


Compute = Callable[[Call], AsyncGenerator[_Response, None]]


class Calls:
    """The calls of one server, by caller and request_id. Lives on the event loop.

    ``priority_cap`` tells how high a caller's requests may be queued.
    """

    def __init__(self, replays: Replays, priority_cap: Callable[[Identity], int]) -> None:
        self.priority_cap = priority_cap
        self._replays = replays
        self._running: defaultdict[tuple[str, str], set[Cancellation]] = defaultdict(set)

    def answers(
        self, method: str, request: CallFields, compute: Compute[_Response]
    ) -> AsyncGenerator[_Response, None]:
        """The responses of one call, for a unary ``method`` one: what ``compute`` yields for it.

        With a request_id the call may be the same as another one, which ``compute`` was started for, and
        CancelGeneration finds it. To be closed as what ``compute`` returns is to be closed.

        Raises:
            InvalidParameter: a field is out of its limits.
        """
        identity, name = current_identity.get(), checked_request_id(request.request_id)
        asked = whole_in_range("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
        priority = min(asked, self.priority_cap(identity))
        if not name:
            return compute(Call("", priority))

        async def cancellable() -> AsyncGenerator[_Response, None]:
            with self._registered(identity.name, name) as cancellation:
                async with aclosing(compute(Call(name, priority, cancellation))) as responses:
                    async for response in responses:
                        yield response

        key = Key.of(identity.name, method, name, cast("Message", request))
        return self._replays.read(key, cancellable)

    def cancel(self, request_id: str) -> int:
        """Cancel what the current caller has running or waiting under ``request_id``; how many that were.

        Raises:
            InvalidParameter: the id is empty or too long.
        """
        if not checked_request_id(request_id):
            raise InvalidParameter("request_id", "must not be empty")
        found = self._running.pop((current_identity.get().name, request_id), set())
        for cancellation in found:
            cancellation.cancel()
        return len(found)

    @contextmanager
    def _registered(self, identity: str, request_id: str) -> Iterator[Cancellation]:
        key, cancellation = (identity, request_id), Cancellation()
        self._running[key].add(cancellation)
        try:
            yield cancellation
        finally:
            if not cancellation.is_cancelled:
                self._running[key].discard(cancellation)
                if not self._running[key]:
                    del self._running[key]


async def only(responses: AsyncGenerator[_Response, None]) -> _Response:
    """The one response of a unary method, once its computation has ended."""
    async with aclosing(responses):
        found = [response async for response in responses]
    if len(found) != 1:
        raise ValueError(f"this is a bug: a unary method has {len(found)} responses")
    return found[0]


def checked_request_id(request_id: str) -> str:
    """Raise InvalidParameter where the id is too long."""
    size = len(request_id.encode())
    if size > MAX_REQUEST_ID_BYTES:
        limit = f"the limit is {MAX_REQUEST_ID_BYTES}"
        raise InvalidParameter("request_id", f"has {size} bytes of UTF-8, and {limit}")
    return request_id
