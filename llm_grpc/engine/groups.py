"""Requests that share the beginning of their prompts: one computes it, and the others wait for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from llm_grpc.engine.request import Request


class PrivateSalts:
    """How many requests there are, running and waiting, with each salt that is a group's own."""

    def __init__(self) -> None:
        self._sizes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sizes)

    def join(self, request: Request) -> None:
        """One more."""
        if request.private_salt is not None:
            self._sizes[request.private_salt] += 1

    def leave(self, request: Request) -> str | None:
        """One fewer. Returns its salt where it was the last one with that."""
        salt = request.private_salt
        if salt is None:
            return None
        self._sizes[salt] -= 1
        if self._sizes[salt]:
            return None
        del self._sizes[salt]
        return salt


def ready(prefilling: Iterable[Request]) -> Iterator[Request]:
    """Those of ``prefilling``, oldest first, that need not wait for an older one of their group.

    The first one never waits. Who takes one of them brings its ``num_computed`` up to date before the next.
    """
    older: dict[int, list[Request]] = {}
    for request in prefilling:
        mates = older.setdefault(request.group, []) if request.group else []
        if not (request.is_untouched and any(_is_computing_for(mate, request) for mate in mates)):
            yield request
        mates.append(request)


def _is_computing_for(mate: Request, request: Request) -> bool:
    """Whether ``mate`` has yet to compute something that ``request`` may take and has not found."""
    at = max(mate.num_computed, request.num_computed)
    return at < request.max_found and mate.salt == request.salt and at < request.num_shared(mate)
