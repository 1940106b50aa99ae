"""The memory of lowering ``slots``: each running request owns a slot that has room for a whole context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from llm_grpc.engine.compaction import MIN_TOKENS_LEFT, best_move
from llm_grpc.engine.request import Request, slot_of
from llm_grpc.engine.slot_room import move, take_slot
from llm_grpc.engine.slot_table import SlotTable
from llm_grpc.engine.step_plan import StepPlan


class Slots:
    """``KvMemory`` over a ``SlotTable``.

    A prompt's beginning that some slot holds is copied from there or left where it is. Decoding requests move
    together, one a step, so that decode rows stay dense. No more run than there is memory for, were each to
    use all its ``max_tokens``, so that who is admitted never waits for memory again.
    """

    max_chunks = 1

    def __init__(self, num_slots: int, context_tokens: int, max_cached_tokens: int | None = None) -> None:
        self.table = SlotTable(num_slots, max_cached_tokens or num_slots * context_tokens)
        self.max_chunk_tokens = context_tokens
        self._num_slots = num_slots
        self._has_moved = False

    @property
    def max_tokens(self) -> int:
        """Tokens that all slots have room for together."""
        return self.table.memory.max_tokens

    def num_used(self, running: Collection[Request]) -> int:
        """Tokens of running requests that are in the cache."""
        return sum(request.num_computed for request in running)

    def admit(self, request: Request, most_tokens: int) -> bool:
        """Give the request a slot and promise it the memory of all that it may come to need."""
        request.slot = take_slot(self.table, request.findable_ids, request.salt, most_tokens)
        return request.slot is not None

    def load(self, request: Request) -> int:
        """Copy what another slot has more of than the request's own."""
        return self.table.load(slot_of(request), request.findable_ids, request.salt)

    def reserve(self, request: Request, num_tokens: int) -> bool:
        """True: memory was promised at admission."""
        return True

    def computed(self, request: Request, tokens: Sequence[int], num_wrong: int = 0) -> None:
        """Write it down; wrong guesses have memory too."""
        self.table.append(slot_of(request), tokens, num_wrong)

    def compact(self, decoding: Sequence[Request]) -> None:
        """Move one of the outermost decoding requests into a hole between them, once a step."""
        if self._has_moved:
            return
        by_slot = {slot_of(request): request for request in decoding}
        best = best_move(
            sorted(by_slot),
            self.table.free,
            lambda slot: by_slot[slot].num_left >= MIN_TOKENS_LEFT,
            self.table.last_used,
        )
        if best and move(self.table, *best):
            by_slot[best[0]].slot = best[1]
            self._has_moved = True

    def free(self, request: Request) -> None:
        """Make the slot free. It keeps what others may use."""
        self.table.release(slot_of(request))
        request.slot = None

    def forget(self, salt: str) -> None:
        """Make free slots of the salt empty."""
        self.table.forget_salt(salt)

    def with_changes(self, plan: StepPlan) -> StepPlan:
        """The plan with copies and releases; most have neither."""
        copies, releases = self.table.copies, self.table.memory.releases
        return replace(plan, copies=copies, releases=releases) if copies or releases else plan

    def committed(self, plan: StepPlan) -> None:
        """Copies and releases are done."""
        self._end_step()
        self.table.memory.released()

    def failed(self, plan: StepPlan) -> Collection[int]:
        """Forget what is in the slots that the run was to write to. Memory is given back by the next run."""
        self._end_step()
        slots = plan.slots
        targets = {copy.target for copy in plan.copies} - slots
        for slot in slots | targets:
            self.table.forget(slot)
        return targets

    def check_integrity(self, running: Collection[Request]) -> None:
        """Raise AssertionError unless every slot is free or owned by exactly one running request, and the
        books say that it holds what that request has computed.
        """
        free, owned = sorted(self.table.free), [request.slot for request in running]
        assert Counter([*free, *owned]) == Counter(range(self._num_slots)), (
            f"this is a bug: free {free} + owned {owned} != {self._num_slots} slots"
        )
        for request in running:
            assert self.table.tokens(slot_of(request)) == request.computed_ids, (
                f"this is a bug: the books on slot {request.slot} are not what its request computed"
            )
        self.table.check_integrity()

    def _end_step(self) -> None:
        self.table.copied()
        self._has_moved = False
