"""The scheduler against a reference model, and against slots that are lists of tokens."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_grpc.engine.compaction import MIN_TOKENS_LEFT
from llm_grpc.engine.request import FailedEvent, Request, TokenEvent
from llm_grpc.engine.step_plan import (
    DecodeRow,
    PrefillChunk,
    Sample,
    Score,
    SlotCopy,
    StepPlan,
    StepResult,
    TokenScore,
)
from llm_grpc.engine.waiting import AGEING_S
from llm_grpc.sampling_params import SamplingParams
from tests.unit.scheduling import EOS, request, slot_scheduler, slot_table
from tests.unit.scripted_runner import ScriptedRunner, scored

TOKENS = 8
GARBAGE = [-1] * 3


def _next_token(history: object) -> int:
    return zlib.crc32(repr(history).encode()) % TOKENS


def _common(held: list[int], prompt: list[int]) -> int:
    differ = (at for at, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b)
    return next(differ, min(len(held), len(prompt) - 1))


@dataclass(eq=False)
class Expected:
    """What the reference model knows of one request."""

    request: Request
    prompt: list[int]
    slot: int = -1
    computed: int = 0
    found: int = 0
    num_copies: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def salt(self) -> tuple[int, str] | None:
        """A group without the cache has it to itself."""
        if self.params.cache_disabled:
            return (self.request.group, "") if self.request.group else None
        return 0, self.params.cache_salt

    @property
    def key(self) -> float:
        return self.request.arrived_s - self.request.priority * AGEING_S

    @property
    def findable(self) -> list[int]:
        """What may be found, and one token more."""
        first = self.request.first_score
        return self.prompt if first is None else self.prompt[: max(first, 1)]

    @property
    def cached(self) -> list[int]:
        return [*self.prompt, *self.output][: self.computed]


@dataclass
class Held:
    """What a slot holds, and for whom."""

    tokens: list[int] = field(default_factory=list)
    salt: tuple[int, str] | None = None


class SchedulerMachine(RuleBasedStateMachine):
    """Any interleaving of additions, aborts, steps and failed steps gives plans that a naive model allows:
    it takes the scheduler's choice of slots and copies, and checks that they hold what they should.
    """

    @initialize(num_slots=st.integers(1, 6), context=st.integers(2, 24), chunk=st.integers(1, 6))
    def start(self, num_slots: int, context: int, chunk: int) -> None:
        self.scheduler = slot_scheduler(num_slots, context, chunk, {EOS})
        self.runner = ScriptedRunner(_next_token)
        self.num_slots, self.context, self.chunk = num_slots, context, chunk
        self.waiting: list[Expected] = []
        self.running: list[Expected] = []
        self.slots = [Held() for _ in range(num_slots)]
        self.prompts: list[list[int]] = [[]]

    @rule(
        data=st.data(),
        max_tokens=st.integers(1, 20),
        salt=st.sampled_from(["", "", "", "other", None]),
        group=st.integers(0, 2),
        priority=st.sampled_from([0, 0, 0, -1, 3]),
        first_score=st.sampled_from([None, None, 1, 5]),
    )
    def add(
        self,
        data: st.DataObject,
        max_tokens: int,
        salt: str | None,
        group: int,
        priority: int,
        first_score: int | None,
    ) -> None:
        earlier = data.draw(st.sampled_from([*self.prompts, *(held.tokens for held in self.slots)]))
        begin = earlier[: data.draw(st.integers(0, self.context - 2))]
        end = data.draw(
            st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=self.context - 1 - len(begin))
        )
        prompt = begin + end
        self.prompts.append(prompt)
        added = request(
            len(self.prompts),
            prompt,
            max_tokens,
            seed=len(self.prompts),
            salt=salt,
            group=group,
            priority=priority,
            first_score=first_score,
            arrived_s=float(len(self.prompts)),
        )
        self.scheduler.add(added)
        self.waiting.append(Expected(added, prompt))

    @precondition(lambda self: len(self.prompts) > 1)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.integers(2, len(self.prompts) + 1))
        self.scheduler.abort(request_id)
        leaving = [e for e in self.waiting if e.request.request_id == request_id]
        self.waiting = [e for e in self.waiting if e not in leaving]
        self.forget_groups(leaving)
        for expected in [e for e in self.running if e.request.request_id == request_id]:
            self.free(expected)

    @rule()
    def step(self) -> None:
        plan = self.plan()
        if plan is None:
            return
        result = self.runner.run(plan)
        events = self.scheduler.commit(plan, result)
        assert events == self.expect_commit(plan, result)

    @rule(far=st.booleans())
    def failed_step(self, far: bool) -> None:
        """Nothing is known of the slots that a failed run was to write, however far it came."""
        plan = self.plan()
        if plan is None:
            return
        named = {row.slot for row in plan.decode} | ({plan.chunk.slot} if plan.chunk else set())
        targets = {copy.target for copy in plan.copies}
        if far:
            self.runner._first_tokens.remember(plan)
        for slot in named | targets:
            self.runner.cache[slot] = GARBAGE[:]
            self.slots[slot].tokens = []
        failed = [e for e in self.running if e.slot in named]
        assert self.scheduler.fail(plan) == [FailedEvent(e.request.request_id) for e in failed]
        for expected in failed:
            self.running.remove(expected)
        self.forget_groups(failed)
        for expected in self.running:
            if expected.slot in targets:
                expected.computed = expected.found = 0

    @rule(times=st.integers(1, 10))
    def some_steps(self, times: int) -> None:
        for _ in range(times):
            self.step()

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        assert self.scheduler.num_running == len(self.running) <= self.num_slots
        assert self.scheduler.num_waiting == len(self.waiting)
        assert self.scheduler.num_cached_tokens == sum(e.computed for e in self.running)
        assert all(e.computed < self.context for e in self.running)
        for expected in self.waiting + self.running:
            slot = None if expected in self.waiting else expected.slot
            assert expected.request.slot == slot
            assert expected.request.output_ids == expected.output

    @invariant()
    def slots_hold_what_the_books_say(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for expected in self.running:
            assert self.slots[expected.slot] == Held(expected.cached, expected.salt)
        for slot, held in enumerate(self.slots):
            assert slot_table(self.scheduler).tokens(slot) == held.tokens
            assert self.runner.cache.get(slot, [])[: len(held.tokens)] == held.tokens

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        while self.running or self.waiting:
            self.step()
            self.counts_agree()
            self.slots_hold_what_the_books_say()
        assert self.scheduler.schedule() is None

    def plan(self) -> StepPlan | None:
        """The scheduler's plan, which must be one that the model allows."""
        before = [Held(held.tokens[:], held.salt) for held in self.slots]
        old = self.running[:]
        plan = self.scheduler.schedule()
        self.expect_admission()
        if plan is None:
            assert not self.running
            return None
        assert plan == self.scheduler.schedule(), "planning again plans the same"
        moves = [copy for copy in plan.copies if self.is_move(copy, plan)]
        assert len(moves) <= 1
        for copy in plan.copies:
            self.expect_move(copy) if copy in moves else self.expect_prefix_copy(copy)
        for expected in self.running:
            if expected.computed == expected.found:
                self.expect_found(expected, before, old)
        self.expect_density(plan, bool(moves))
        assert plan == self.expect_plan(plan.copies)
        return plan

    def expect_admission(self) -> None:
        """By priority and time of arrival, into slots that were free."""
        while self.waiting and len(self.running) < self.num_slots:
            admitted = min(self.waiting, key=lambda each: each.key)
            self.waiting.remove(admitted)
            assert admitted.request.slot not in {None, *(e.slot for e in self.running)}
            admitted.slot = admitted.request.slot or 0
            self.running.append(admitted)

    def is_move(self, copy: SlotCopy, plan: StepPlan) -> bool:
        owners = {e.slot for e in self.running}
        return copy.target not in owners and copy.target in {row.slot for row in plan.decode}

    def expect_move(self, copy: SlotCopy) -> None:
        """An outermost decoding request with something left to do goes to a free slot between both ends."""
        decoding = {e.slot: e for e in self.running if e.computed >= len(e.prompt)}
        moved = decoding[copy.source]
        assert copy.source in {min(decoding), max(decoding)}
        assert min(decoding) < copy.target < max(decoding)
        assert moved.params.max_tokens - len(moved.output) >= MIN_TOKENS_LEFT
        assert copy.num_tokens == moved.computed
        self.slots[copy.target] = Held(moved.cached, moved.salt)
        if moved.salt is None:
            self.slots[copy.source] = Held()
        moved.slot = copy.target

    def expect_prefix_copy(self, copy: SlotCopy) -> None:
        """Who waits for its first chunk gets what its prompt begins with, from a slot of its own salt."""
        [owner] = [e for e in self.running if e.slot == copy.target]
        source = self.slots[copy.source]
        assert owner.salt is not None
        assert owner.salt == source.salt
        assert owner.computed == owner.found < copy.num_tokens < len(owner.findable)
        assert source.tokens[: copy.num_tokens] == owner.prompt[: copy.num_tokens]
        self.slots[copy.target] = Held(owner.prompt[: copy.num_tokens], owner.salt)
        owner.num_copies += 1
        assert owner.num_copies <= 2, "one when it is admitted, one when it is its turn"

    def expect_found(self, expected: Expected, before: list[Held], old: list[Expected]) -> None:
        """What a request found is in its slot, and no slot that stayed as it was has more of it."""
        found = expected.request.num_computed
        held = self.slots[expected.slot]
        assert found == expected.request.num_cached >= expected.found
        assert held.tokens[:found] == expected.prompt[:found]
        assert not found or held.salt == expected.salt
        self.slots[expected.slot] = Held(expected.prompt[:found], expected.salt)
        expected.computed = expected.found = found
        if expected.salt is None:
            assert found == 0
        elif expected not in old:
            stayed = before if self.running == [*old, expected] else [before[e.slot] for e in old]
            same = [_common(h.tokens, expected.findable) for h in stayed if h.salt == expected.salt]
            assert found >= max(same, default=0)

    def expect_density(self, plan: StepPlan, moved: bool) -> None:
        """A hole stays for one of two reasons: another was filled, or nobody outside has much left to do."""
        decoding = {e.slot: e for e in self.running if e.computed >= len(e.prompt)}
        if moved or not decoding:
            return
        ends = [decoding[min(decoding)], decoding[max(decoding)]]
        if any(e.params.max_tokens - len(e.output) >= MIN_TOKENS_LEFT for e in ends):
            owned = {e.slot for e in self.running}
            assert owned >= set(range(min(decoding), max(decoding)))

    def expect_plan(self, copies: tuple[SlotCopy, ...]) -> StepPlan:
        """All that can decode, in order of admission, then a chunk of the oldest unfinished prompt."""
        decoding = [e for e in self.running if e.output]
        prefilling = [e for e in self.running if not e.output]
        samples = [self.expect_sample(e, row) for row, e in enumerate(decoding)]
        chunk, scores = None, []
        if prefilling:
            first = prefilling[0]
            end = min(first.computed + self.chunk, len(first.prompt))
            chunk = PrefillChunk(first.slot, first.computed, first.prompt[first.computed : end])
            if first.request.first_score is not None:
                at = max(first.request.first_score, first.computed + 1)
                scores = [
                    Score(
                        first.request.request_id,
                        len(decoding) + token - 1 - first.computed,
                        first.prompt[token],
                    )
                    for token in range(at, min(end + 1, len(first.prompt)))
                ]
            if end == len(first.prompt):
                samples.append(self.expect_sample(first, len(decoding) + end - first.computed - 1))
        rows = tuple(DecodeRow(e.slot, e.output[-1], len(e.prompt + e.output) - 1) for e in decoding)
        return StepPlan(rows, (chunk,) if chunk else (), tuple(samples), copies, scores=tuple(scores))

    def expect_sample(self, expected: Expected, row: int) -> Sample:
        return Sample(expected.request.request_id, row, len(expected.output), expected.params)

    def expect_commit(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Every planned token is in the cache; every sampled request has one token more, and may end."""
        computed = {row.slot: 1 for row in plan.decode}
        if plan.chunk:
            computed[plan.chunk.slot] = len(plan.chunk.tokens)
        for expected in self.running:
            expected.computed += computed.get(expected.slot, 0)
            self.slots[expected.slot].tokens = expected.cached
        events = []
        for sample, token in zip(plan.samples, result.tokens, strict=True):
            [expected] = [e for e in self.running if e.request.request_id == sample.request_id]
            expected.output.append(token)
            output, reason = self.runner.expected(expected.prompt, expected.params, self.context, {EOS})
            assert expected.output == output[: len(expected.output)]
            is_first, ended = len(expected.output) == 1, expected.output == output
            found, scores = (expected.found, self.expect_scores(expected)) if is_first else (0, ())
            event = TokenEvent(sample.request_id, token, reason if ended else None, found)
            events.append(event._replace(prompt_scores=scores))
            if ended:
                self.free(expected)
        return events

    def expect_scores(self, expected: Expected) -> tuple[TokenScore, ...]:
        first, prompt = expected.request.first_score, expected.prompt
        if first is None:
            return ()
        return tuple(scored(prompt[:at], prompt[at]) for at in range(first, len(prompt)))

    def free(self, expected: Expected) -> None:
        """A slot keeps what others may use."""
        self.running.remove(expected)
        if expected.salt is None:
            self.slots[expected.slot] = Held()
        self.forget_groups([expected])

    def forget_groups(self, gone: list[Expected]) -> None:
        """Nothing stays of a group without the cache of which nobody is left."""
        for left in (e for e in gone if e.params.cache_disabled and e.request.group):
            if not any(e.salt == left.salt for e in self.running + self.waiting):
                for slot, held in enumerate(self.slots):
                    if held.salt == left.salt and slot not in {e.slot for e in self.running}:
                        self.slots[slot] = Held()


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestScheduler = SchedulerMachine.TestCase
