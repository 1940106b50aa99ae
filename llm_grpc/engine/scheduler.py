"""Which tokens the next step computes. Knows token ids and counts, nothing of text, tensors or time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from llm_grpc.engine.compaction import MIN_TOKENS_LEFT, best_move
from llm_grpc.engine.guessing import guessing_step, learn, num_wrong
from llm_grpc.engine.request import FailedEvent, Request, TokenEvent
from llm_grpc.engine.slot_room import move, take_slot
from llm_grpc.engine.slot_table import SlotTable
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, StepPlan


class Scheduler:
    """``waiting`` is first come, first served; ``running`` requests own a slot each, in order of admission.

    Every running request that has its prompt in the cache decodes in every step; beside them one chunk of
    the oldest unfinished prompt is prefilled. A prompt's beginning that some slot holds is copied from there
    or left where it is; who waits for its first chunk looks again then, for an older request may have
    computed more of it by now. Decoding requests move together, one a step, so that decode rows stay dense.
    No more run than there is memory for, were each to use all its ``max_tokens``, and nobody overtakes who
    waits for memory. A request that is alone has guesses at its next tokens checked with it; what it gets is
    the same.
    """

    def __init__(
        self,
        num_slots: int,
        context_tokens: int,
        chunk_tokens: int,
        eos_token_ids: Collection[int],
        budget: StepBudget | None = None,
        max_cached_tokens: int | None = None,
    ) -> None:
        self._num_slots = num_slots
        self._context_tokens = context_tokens
        self._budget = budget or StepBudget(chunk_tokens)
        self._chunk_tokens = chunk_tokens
        self._eos_token_ids = frozenset(eos_token_ids)
        self._table = SlotTable(num_slots, max_cached_tokens or num_slots * context_tokens)
        self._has_moved = False
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with a slot."""
        return len(self._running)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of running requests that are in the cache."""
        return sum(request.num_computed for request in self._running.values())

    @property
    def num_copies(self) -> int:
        """Copies between slots since the start; a counter for tests and benchmarks."""
        return self._table.num_copies

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt holds 1 to ``context_tokens - 1`` tokens, and all of it fits memory."""
        if not 0 < len(request.prompt_ids) < self._context_tokens:
            raise ValueError(f"this is a bug: a prompt of {len(request.prompt_ids)} tokens was admitted")
        most, room = request.most_tokens(self._context_tokens), self._table.memory.max_tokens
        if most > room:
            raise ValueError(f"this is a bug: a request of {most} tokens was admitted to a cache of {room}")
        self._waiting.append(request)

    def abort(self, request_id: int) -> None:
        """Forget a request wherever it is; an id that is not here has ended already."""
        if request_id in self._running:
            self._free(self._running[request_id])
        else:
            self._waiting = deque(r for r in self._waiting if r.request_id != request_id)

    def schedule(self) -> StepPlan | None:
        """Plan the next step, or None where there is nothing to compute."""
        self._admit()
        if not self._running:
            return None
        prefilling = next((r for r in self._running.values() if r.is_prefilling), None)
        if prefilling and prefilling.is_untouched:
            self._load(prefilling)
        decoding = [request for request in self._running.values() if not request.is_prefilling]
        if len(decoding) == len(self._running) == 1 and (guessing := self._guess(decoding[0])):
            return self._with_changes(guessing)
        self._compact(decoding)
        samples = [self._sample(request, row) for row, request in enumerate(decoding)]
        chunk = None
        if prefilling:
            chunk = self._chunk(prefilling, len(decoding))
            if chunk.start + len(chunk.tokens) == len(prefilling.prompt_ids):
                samples.append(self._sample(prefilling, len(decoding) + len(chunk.tokens) - 1))
        rows = tuple(self._decode_row(request) for request in decoding)
        return self._with_changes(StepPlan(rows, (chunk,) if chunk else (), tuple(samples)))

    def commit(self, plan: StepPlan, tokens: Sequence[int]) -> list[TokenEvent]:
        """Take the tokens that a plan's run chose, advance its requests and free the finished ones."""
        chosen = list(zip(plan.samples, tokens, strict=True))
        self._end_step()
        self._table.memory.released()
        by_slot = {request.slot: request for request in self._running.values()}
        for row in plan.decode:
            self._computed(by_slot[row.slot], (row.token,))
        if plan.chunk:
            chunk, request = plan.chunk, by_slot[plan.chunk.slot]
            wrong = num_wrong(chunk, tokens)
            self._computed(request, chunk.tokens[: len(chunk.tokens) - wrong], wrong)
            learn(request, chunk.num_guesses, wrong)
            chosen = chosen[: len(chosen) - wrong]
        events = (
            self._advance(self._running[sample.request_id], token)
            for sample, token in chosen
            if sample.request_id in self._running  # not after a guess that ended it
        )
        return list(events)

    def fail(self, plan: StepPlan) -> list[FailedEvent]:
        """End every request that had part in a failed run, and forget what is in the slots it wrote to.

        A request that only had tokens copied to it starts over. Memory is given back by the next run.
        """
        self._end_step()
        slots = {row.slot for row in plan.decode} | ({plan.chunk.slot} if plan.chunk else set())
        targets = {copy.target for copy in plan.copies} - slots
        for slot in slots | targets:
            self._table.forget(slot)
        for request in self._running.values():
            if request.slot in targets:
                request.num_computed = request.num_cached = 0
        return list(self._end([request for request in self._running.values() if request.slot in slots]))

    def fail_all(self) -> list[FailedEvent]:
        """End every request there is."""
        return list(self._end([*self._running.values(), *self._waiting]))

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is free or owned by exactly one running request, and the
        books say that it holds what that request has computed.
        """
        free, owned = sorted(self._table.free), [request.slot for request in self._running.values()]
        assert Counter([*free, *owned]) == Counter(range(self._num_slots)), (
            f"this is a bug: free {free} + owned {owned} != {self._num_slots} slots"
        )
        assert all(r.slot is None for r in self._waiting), "this is a bug: a waiting request owns a slot"
        for request in self._running.values():
            computed = [*request.prompt_ids, *request.output_ids][: request.num_computed]
            assert self._table.tokens(_slot(request)) == computed, (
                f"this is a bug: the books on slot {request.slot} are not what its request computed"
            )
        self._table.check_integrity()

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            most = request.most_tokens(self._context_tokens)
            request.slot = take_slot(self._table, list(request.prompt_ids), request.salt, most)
            if request.slot is None:
                return
            self._running[request.request_id] = self._waiting.popleft()
            self._load(request)

    def _load(self, request: Request) -> None:
        """Take what is in the cache of the prompt's beginning."""
        found = self._table.load(_slot(request), list(request.prompt_ids), request.salt)
        request.num_computed = request.num_cached = found

    def _compact(self, decoding: Sequence[Request]) -> None:
        """Move one of the outermost decoding requests into a hole between them, once a step."""
        if self._has_moved:
            return
        by_slot = {_slot(request): request for request in decoding}
        best = best_move(
            sorted(by_slot),
            self._table.free,
            lambda slot: by_slot[slot].num_left >= MIN_TOKENS_LEFT,
            self._table.last_used,
        )
        if best and move(self._table, *best):
            by_slot[best[0]].slot = best[1]
            self._has_moved = True

    def _with_changes(self, plan: StepPlan) -> StepPlan:
        return replace(plan, copies=self._table.copies, releases=self._table.memory.releases)

    def _computed(self, request: Request, tokens: Sequence[int], num_wrong: int = 0) -> None:
        request.num_computed += len(tokens)
        self._table.append(_slot(request), tokens, num_wrong)

    def _end_step(self) -> None:
        self._table.copied()
        self._has_moved = False

    def _free(self, request: Request) -> None:
        del self._running[request.request_id]
        self._table.release(_slot(request))
        request.slot = None

    def _end(self, requests: list[Request]) -> Iterator[FailedEvent]:
        for request in requests:
            self.abort(request.request_id)
            yield FailedEvent(request.request_id)

    def _chunk(self, request: Request, num_decoding: int) -> PrefillChunk:
        start = request.num_computed
        most = self._budget.beside(num_decoding) if num_decoding else self._chunk_tokens
        tokens = request.prompt_ids[start : start + min(most, self._chunk_tokens)]
        return PrefillChunk(_slot(request), start, tokens)

    def _guess(self, request: Request) -> StepPlan | None:
        """A step that checks guesses at what the only request says next."""
        left = request.most_tokens(self._context_tokens) - request.num_tokens
        return guessing_step(request, min(self._budget.num_guesses, left - 1))

    def _decode_row(self, request: Request) -> DecodeRow:
        return DecodeRow(_slot(request), request.output_ids[-1], request.num_computed)

    def _sample(self, request: Request, row: int) -> Sample:
        return Sample(request.request_id, row, len(request.output_ids), request.params)

    def _advance(self, request: Request, token: int) -> TokenEvent:
        request.output_ids.append(token)
        if request.lookup:
            request.lookup.extend((token,))
        reason = request.finish_reason(self._eos_token_ids, self._context_tokens)
        if reason:
            self._free(request)
        is_first = len(request.output_ids) == 1
        return TokenEvent(request.request_id, token, reason, request.num_cached if is_first else 0)


def _slot(request: Request) -> int:
    if request.slot is None:
        raise ValueError(f"this is a bug: request {request.request_id} runs without a slot")
    return request.slot
