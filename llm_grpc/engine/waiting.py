"""Who waits for a slot, and who of them is next."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from llm_grpc.engine.request import Request

AGEING_S = 5.0
"""Seconds of waiting that count as one level of priority: at 10 levels above, who comes goes before those of
the last 50 seconds."""


class Waiting:
    """Requests in the order of ``arrived_s`` less ``ageing_s`` for each level of ``priority``.

    That order never changes: who comes more than ``ageing_s`` for each level later stays behind, so nobody
    waits for ever. Of equals, who was added first is first. Those that ran already come before all others.
    """

    def __init__(self, ageing_s: float = AGEING_S) -> None:
        self._ageing_s = ageing_s
        self._again: deque[Request] = deque()
        self._queue: list[tuple[float, int, Request]] = []
        self._added = itertools.count()

    def __len__(self) -> int:
        return len(self._again) + len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        yield from self._again
        yield from (request for _, _, request in self._queue)

    @property
    def first(self) -> Request | None:
        """Who is next; None where nobody waits."""
        if self._again:
            return self._again[0]
        return self._queue[0][2] if self._queue else None

    def add(self, request: Request) -> None:
        """A newcomer."""
        key = request.arrived_s - request.priority * self._ageing_s
        heappush(self._queue, (key, next(self._added), request))

    def put_back(self, request: Request) -> None:
        """One that gave way: it is next."""
        self._again.appendleft(request)

    def take(self) -> None:
        """The first one waits no more."""
        if self._again:
            self._again.popleft()
        else:
            heappop(self._queue)

    def remove(self, request_id: int) -> Request | None:
        """Who has this id waits no more; None where nobody has."""
        found = next((request for request in self if request.request_id == request_id), None)
        if found:
            self._again = deque(each for each in self._again if each is not found)
            self._queue = [entry for entry in self._queue if entry[2] is not found]
            heapify(self._queue)
        return found
