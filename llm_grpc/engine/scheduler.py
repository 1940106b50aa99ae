"""Which tokens the next step computes. Knows token ids and counts, nothing of text or tensors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from llm_grpc.engine.groups import PrivateSalts
from llm_grpc.engine.guessing import guessing_step, learn, num_wrong
from llm_grpc.engine.kv_memory import KvMemory
from llm_grpc.engine.prefill import plan_prefill
from llm_grpc.engine.request import Event, FailedEvent, Request, TokenEvent, slot_of
from llm_grpc.engine.samples import sample_of
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import DecodeRow, Sample, StepPlan, StepResult, TokenScore
from llm_grpc.engine.waiting import AGEING_S, Waiting

log = logging.getLogger(__name__)


class Scheduler:
    """``waiting`` is by priority and time of arrival; ``running`` requests own a slot each, as admitted.

    Every running request that has its prompt in the cache decodes in every step; beside them the oldest
    unfinished prompts are prefilled, as many and as much of them as ``memory`` and ``budget`` allow. Who
    waits for its first chunk looks again then for its prompt's beginning, for an older request may have
    computed more of it by now; while an older one of its group does, it lets others pass. Nobody overtakes
    who is first and waits for memory; where memory runs out, the request that was admitted last gives way and
    waits as the next one to run. A request that is alone has guesses at its next tokens checked with it; what
    it gets is the same. ``ageing_s`` is how long a request waits for one level of priority.
    """

    def __init__(  # noqa: PLR0913 - the limits of one model, and the clock
        self,
        memory: KvMemory,
        context_tokens: int,
        chunk_tokens: int,
        eos_token_ids: Collection[int],
        budget: StepBudget | None = None,
        *,
        ageing_s: float = AGEING_S,
        vocabulary_size: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._memory = memory
        self._context_tokens = context_tokens
        self._budget = budget or StepBudget(chunk_tokens)
        self._chunk_tokens = chunk_tokens
        self._eos_token_ids = frozenset(eos_token_ids)
        self._vocabulary_size = vocabulary_size
        self._clock = clock
        self._waiting = Waiting(ageing_s)
        self._running: dict[int, Request] = {}
        self._private_salts = PrivateSalts()
        self.num_preemptions = 0

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
        """Tokens of memory that running requests use."""
        return self._memory.num_used(self._running.values())

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt holds 1 to ``context_tokens - 1`` tokens, and all of it fits memory."""
        if not 0 < len(request.prompt_ids) < self._context_tokens:
            raise ValueError(f"this is a bug: a prompt of {len(request.prompt_ids)} tokens was admitted")
        most, room = request.most_tokens(self._context_tokens), self._memory.max_tokens
        if most > room:
            raise ValueError(f"this is a bug: a request of {most} tokens was admitted to a cache of {room}")
        self._private_salts.join(request)
        self._waiting.add(request)

    def abort(self, request_id: int) -> None:
        """Forget a request wherever it is; an id that is not here has ended already."""
        if request := self._running.get(request_id):
            self._end(request)
        elif waiting := self._waiting.remove(request_id):
            self._leave(waiting)

    def schedule(self) -> StepPlan | None:
        """Plan the next step, or None where there is nothing to compute."""
        self._admit()
        decoding = self._with_memory([r for r in self._running.values() if not r.is_prefilling])
        if not self._running:
            return None
        if len(decoding) == len(self._running) == 1 and (guessing := self._guess(decoding[0])):
            return self._memory.with_changes(guessing)
        prefill = plan_prefill(
            (r for r in self._running.values() if r.is_prefilling),
            self._memory,
            self._prompt_tokens(len(decoding)),
            len(decoding),
            self._load,
        )
        self._memory.compact(decoding)
        rows = tuple(self._decode_row(request) for request in decoding)
        sampled = [(request, row) for row, request in enumerate(decoding)] + prefill.last_rows
        samples = tuple(self._sample(request, row) for request, row in sampled)
        scores = tuple(prefill.scores)
        return self._memory.with_changes(StepPlan(rows, tuple(prefill.chunks), samples, scores=scores))

    def commit(self, plan: StepPlan, result: StepResult) -> list[Event]:
        """Take the tokens that a plan's run chose, advance its requests and free the finished ones."""
        tokens = result.tokens
        chosen = list(zip(plan.samples, tokens, strict=True))
        self._memory.committed(plan)
        for asked, score in zip(plan.scores, result.scores, strict=True):
            self._running[asked.request_id].prompt_scores.append(score)
        by_slot = {request.slot: request for request in self._running.values()}
        for row in plan.decode:
            self._computed(by_slot[row.slot], (row.token,))
        for chunk in plan.chunks:
            request, wrong = by_slot[chunk.slot], num_wrong(chunk, tokens)
            self._computed(request, chunk.tokens[: len(chunk.tokens) - wrong], wrong)
            learn(request, chunk.num_guesses, wrong)
            chosen = chosen[: len(chosen) - wrong]
        events = (
            self._advance(self._running[sample.request_id], token, result.logprobs.get(place))
            for place, (sample, token) in enumerate(chosen)
            if sample.request_id in self._running  # not after a guess that ended it
        )
        return list(events)

    def fail(self, plan: StepPlan) -> list[FailedEvent]:
        """End every request that had part in a failed run; what it was to write is forgotten.

        A request that only had tokens copied to it starts over.
        """
        starting_over = self._memory.failed(plan)
        for request in self._running.values():
            if request.slot in starting_over:
                request.num_computed = request.num_cached = 0
        slots = plan.slots
        return list(self._fail([request for request in self._running.values() if request.slot in slots]))

    def fail_all(self) -> list[FailedEvent]:
        """End every request there is."""
        return list(self._fail([*self._running.values(), *self._waiting]))

    def check_integrity(self) -> None:
        """Raise AssertionError unless the books on the memory agree with each other and with the requests."""
        self._memory.check_integrity(self._running.values())
        assert all(r.slot is None for r in self._waiting), "this is a bug: a waiting request owns a slot"

    def _admit(self) -> None:
        while request := self._waiting.first:
            if not self._memory.admit(request, request.most_tokens(self._context_tokens)):
                return
            self._waiting.take()
            self._running[request.request_id] = request
            if request.begun_s is None:
                request.begun_s = self._clock()
            self._load(request)

    def _load(self, request: Request) -> None:
        """Take what is in the cache of the prompt's beginning."""
        request.num_computed = request.num_cached = self._memory.load(request)

    def _with_memory(self, decoding: list[Request]) -> list[Request]:
        """Those that have memory for their next token; where it is short, who came last gives way."""
        for request in decoding:
            while request.slot is not None and not self._memory.reserve(request, request.num_computed + 1):
                self._preempt(next(reversed(self._running.values())))
        return [request for request in decoding if request.slot is not None]

    def _preempt(self, request: Request) -> None:
        """Take a request's memory; it computes again what it has said, and goes on from there."""
        self._free(request)
        if request.num_found is None and not request.is_untouched:
            request.num_found = request.num_cached
        request.start_over()
        self._waiting.put_back(request)
        self.num_preemptions += 1

    def _computed(self, request: Request, tokens: Sequence[int], num_wrong: int = 0) -> None:
        request.num_computed += len(tokens)
        self._memory.computed(request, tokens, num_wrong)

    def _free(self, request: Request) -> None:
        del self._running[request.request_id]
        self._memory.free(request)

    def _end(self, request: Request) -> None:
        """A running request ends."""
        self._free(request)
        self._leave(request)

    def _leave(self, request: Request) -> None:
        """The request is gone; with the last one that shares with its group alone, so is what they left."""
        if (salt := self._private_salts.leave(request)) is not None:
            self._memory.forget(salt)

    def _fail(self, requests: list[Request]) -> Iterator[FailedEvent]:
        for request in requests:
            self.abort(request.request_id)
            yield FailedEvent(request.request_id)

    def _prompt_tokens(self, num_decoding: int) -> int:
        """Tokens of prompts that a step computes beside so many decode rows."""
        most = self._budget.beside(num_decoding) if num_decoding else self._chunk_tokens
        return min(most, self._chunk_tokens)

    def _guess(self, request: Request) -> StepPlan | None:
        """A step that checks guesses at what the only request says next."""
        left = request.most_tokens(self._context_tokens) - request.num_tokens
        plan = guessing_step(request, min(self._budget.num_guesses, left - 1), self._sample)
        if plan is None or not self._memory.reserve(request, request.num_computed + plan.num_tokens):
            return None
        return plan

    def _decode_row(self, request: Request) -> DecodeRow:
        slot, token = slot_of(request), request.output_ids[-1]
        return DecodeRow(slot, token, request.num_computed, request.adapter)

    def _sample(self, request: Request, row: int, ahead: int = 0) -> Sample:
        return sample_of(request, row, self._eos_token_ids, self._vocabulary_size, ahead)

    def _advance(self, request: Request, token: int, score: TokenScore | None) -> Event:
        try:
            failed = request.mask is not None and request.mask.has_failed
            request.say(token)
            reason = request.finish_reason(self._eos_token_ids, self._context_tokens)
        except Exception:
            log.exception("the constraint of request %d failed", request.request_id)
            failed, reason = True, None
        if failed or reason:
            self._end(request)
        if failed:
            return FailedEvent(request.request_id)
        if len(request.output_ids) > 1:
            return TokenEvent(request.request_id, token, reason, score=score)
        found = request.num_cached if request.num_found is None else request.num_found
        scores, begun_s = tuple(request.prompt_scores), request.begun_s or 0.0
        return TokenEvent(request.request_id, token, reason, found, score, scores, begun_s)
