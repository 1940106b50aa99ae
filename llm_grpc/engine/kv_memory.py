"""What the scheduler needs of whoever keeps the books on the memory of keys and values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from llm_grpc.engine.request import Request
from llm_grpc.engine.step_plan import StepPlan


class KvMemory(Protocol):
    """Gives running requests a ``slot`` and the memory of their tokens, and finds what is there already.

    A plan that ``with_changes`` has completed is followed by ``committed`` or by ``failed``, or it is thrown
    away and the next one has its changes too.
    """

    @property
    def max_tokens(self) -> int:
        """Tokens that a request has room for if it is alone."""
        ...

    @property
    def max_chunks(self) -> int:
        """Prompts that one step prefills."""
        ...

    @property
    def max_chunk_tokens(self) -> int:
        """Tokens that one step computes of one prompt."""
        ...

    def num_used(self, running: Collection[Request]) -> int:
        """Tokens of memory that running requests use."""
        ...

    def admit(self, request: Request, most_tokens: int) -> bool:
        """Give a waiting request a slot. False, and nothing changes, where it has to wait.

        ``most_tokens`` is how many tokens there are of it if nothing ends it before its time.
        """
        ...

    def load(self, request: Request) -> int:
        """Take what is there of the beginning of ``known_ids``; none of them was computed for the request.

        Returns how many tokens that is: ``max_found`` at most.
        """
        ...

    def reserve(self, request: Request, num_tokens: int) -> bool:
        """Make the positions of a request writable up to its first ``num_tokens``, computed ones excepted.

        False where there is no memory; whoever is freed then may leave enough.
        """
        ...

    def computed(self, request: Request, tokens: Sequence[int], num_wrong: int = 0) -> None:
        """A good run computed ``tokens`` behind those of the request, and then ``num_wrong`` of no use."""
        ...

    def compact(self, decoding: Sequence[Request]) -> None:
        """Change slots so that the next step's decode rows cost less, if that is worth it."""
        ...

    def free(self, request: Request) -> None:
        """Take the slot back. What others may use stays findable for as long as nobody needs its memory.

        What would not stay is given to running requests of its group that are untouched: ``num_computed``
        and ``num_cached`` of those grow.
        """
        ...

    def forget(self, salt: str) -> None:
        """Nobody comes any more that may find what was left under this salt, and nobody runs with it."""
        ...

    def with_changes(self, plan: StepPlan) -> StepPlan:
        """The plan, with all that has to be done to the memory before it."""
        ...

    def committed(self, plan: StepPlan) -> None:
        """The plan's run was a good one. Comes before ``computed``."""
        ...

    def failed(self, plan: StepPlan) -> Collection[int]:
        """The plan's run failed: nothing is known of what it was to write.

        The requests that have a part in it are freed next. Returns slots of others that start over; who only
        has less than before is told so as in ``free``.
        """
        ...

    def check_integrity(self, running: Collection[Request]) -> None:
        """Raise AssertionError unless the books agree with each other and with what the requests computed."""
        ...
