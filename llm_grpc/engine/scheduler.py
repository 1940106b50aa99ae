"""Which tokens the next step computes. Knows token ids and counts, nothing of text, tensors or time."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence

from llm_grpc.engine.request import FailedEvent, Request, TokenEvent
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.sampling_params import FinishReason


class Scheduler:
    """``waiting`` is first come, first served; ``running`` requests own a slot each, in order of admission.

    Every running request that has its prompt in the cache decodes in every step; beside them one chunk of
    the oldest unfinished prompt is prefilled. Slots are handed out lowest first, so that decode rows stay
    dense.
    """

    def __init__(
        self, num_slots: int, context_tokens: int, chunk_tokens: int, eos_token_ids: Collection[int]
    ) -> None:
        self._num_slots = num_slots
        self._context_tokens = context_tokens
        self._chunk_tokens = chunk_tokens
        self._eos_token_ids = frozenset(eos_token_ids)
        self._free_slots = list(range(num_slots))
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

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt holds 1 to ``context_tokens - 1`` tokens."""
        if not 0 < len(request.prompt_ids) < self._context_tokens:
            raise ValueError(f"this is a bug: a prompt of {len(request.prompt_ids)} tokens was admitted")
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
        decoding = [request for request in self._running.values() if not request.is_prefilling]
        samples = [self._sample(request, row) for row, request in enumerate(decoding)]
        chunk = None
        prefilling = next((r for r in self._running.values() if r.is_prefilling), None)
        if prefilling:
            chunk = self._chunk(prefilling)
            if chunk.start + len(chunk.tokens) == len(prefilling.prompt_ids):
                samples.append(self._sample(prefilling, len(decoding) + len(chunk.tokens) - 1))
        return StepPlan(tuple(self._decode_row(request) for request in decoding), chunk, tuple(samples))

    def commit(self, plan: StepPlan, tokens: Sequence[int]) -> list[TokenEvent]:
        """Take the tokens that a plan's run chose, advance its requests and free the finished ones."""
        by_slot = {request.slot: request for request in self._running.values()}
        for row in plan.decode:
            by_slot[row.slot].num_computed += 1
        if plan.chunk:
            by_slot[plan.chunk.slot].num_computed += len(plan.chunk.tokens)
        return [
            self._advance(self._running[sample.request_id], token)
            for sample, token in zip(plan.samples, tokens, strict=True)
        ]

    def fail(self, plan: StepPlan) -> list[FailedEvent]:
        """End every request that had part in a failed run."""
        slots = {row.slot for row in plan.decode} | ({plan.chunk.slot} if plan.chunk else set())
        failed = [request for request in self._running.values() if request.slot in slots]
        return list(self._end(failed))

    def fail_all(self) -> list[FailedEvent]:
        """End every request there is."""
        return list(self._end([*self._running.values(), *self._waiting]))

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is free or owned by exactly one running request."""
        owned = [request.slot for request in self._running.values()]
        assert Counter([*self._free_slots, *owned]) == Counter(range(self._num_slots)), (
            f"this is a bug: free {sorted(self._free_slots)} + owned {owned} != {self._num_slots} slots"
        )
        assert all(r.slot is None for r in self._waiting), "this is a bug: a waiting request owns a slot"

    def _admit(self) -> None:
        while self._waiting and self._free_slots:
            request = self._waiting.popleft()
            request.slot = heapq.heappop(self._free_slots)
            self._running[request.request_id] = request

    def _free(self, request: Request) -> None:
        del self._running[request.request_id]
        heapq.heappush(self._free_slots, _slot(request))
        request.slot = None

    def _end(self, requests: list[Request]) -> Iterator[FailedEvent]:
        for request in requests:
            self.abort(request.request_id)
            yield FailedEvent(request.request_id)

    def _chunk(self, request: Request) -> PrefillChunk:
        start = request.num_computed
        tokens = request.prompt_ids[start : start + self._chunk_tokens]
        return PrefillChunk(_slot(request), start, tokens)

    def _decode_row(self, request: Request) -> DecodeRow:
        return DecodeRow(_slot(request), request.output_ids[-1], request.num_computed)

    def _sample(self, request: Request, row: int) -> Sample:
        return Sample(request.request_id, row, len(request.output_ids), request.params)

    def _advance(self, request: Request, token: int) -> TokenEvent:
        request.output_ids.append(token)
        reason = self._finish_reason(request, token)
        if reason:
            self._free(request)
        return TokenEvent(request.request_id, token, reason)

    def _finish_reason(self, request: Request, token: int) -> FinishReason | None:
        if token in self._eos_token_ids and not request.params.ignore_eos:
            return FinishReason.EOS
        if len(request.output_ids) >= request.params.max_tokens:
            return FinishReason.LENGTH
        if request.num_tokens >= self._context_tokens:
            return FinishReason.CONTEXT_LIMIT
        return None


def _slot(request: Request) -> int:
    if request.slot is None:
        raise ValueError(f"this is a bug: request {request.request_id} runs without a slot")
    return request.slot
