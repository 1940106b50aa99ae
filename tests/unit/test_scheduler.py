"""The scheduler against a reference model, and against a cache that is written in order or not at all."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_grpc.engine.request import FailedEvent, Request, TokenEvent
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.sampling_params import FinishReason, SamplingParams
from tests.unit.scripted_runner import ScriptedRunner

EOS = 0
TOKENS = 8


def _next_token(history: object) -> int:
    return zlib.crc32(repr(history).encode()) % TOKENS


def request(request_id: int, prompt: list[int], max_tokens: int = 100, seed: int = 0) -> Request:
    return Request(request_id, prompt, SamplingParams(max_tokens=max_tokens, seed=seed))


def step(scheduler: Scheduler, runner: ScriptedRunner) -> tuple[StepPlan, list[TokenEvent]]:
    plan = scheduler.schedule()
    assert plan is not None
    return plan, scheduler.commit(plan, runner.run(plan))


def finish(scheduler: Scheduler, runner: ScriptedRunner) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    while plan := scheduler.schedule():
        events += scheduler.commit(plan, runner.run(plan))
        scheduler.check_integrity()
    return events


@dataclass(eq=False)
class Expected:
    """What the reference model knows of one request."""

    request: Request
    prompt: list[int]
    max_tokens: int
    slot: int = -1
    computed: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def cached(self) -> list[int]:
        return [*self.prompt, *self.output][: self.computed]


class SchedulerMachine(RuleBasedStateMachine):
    """Any interleaving of additions, aborts, steps and failed steps gives the plans of a naive model."""

    @initialize(num_slots=st.integers(1, 4), context=st.integers(2, 20), chunk=st.integers(1, 6))
    def start(self, num_slots: int, context: int, chunk: int) -> None:
        self.scheduler = Scheduler(num_slots, context, chunk, {EOS})
        self.runner = ScriptedRunner(_next_token)
        self.num_slots, self.context, self.chunk = num_slots, context, chunk
        self.waiting: list[Expected] = []
        self.running: list[Expected] = []
        self.num_added = 0

    @rule(data=st.data(), max_tokens=st.integers(1, 12))
    def add(self, data: st.DataObject, max_tokens: int) -> None:
        token = st.integers(0, TOKENS - 1)
        prompt = data.draw(st.lists(token, min_size=1, max_size=self.context - 1))
        self.num_added += 1
        added = request(self.num_added, prompt, max_tokens, seed=self.num_added)
        self.scheduler.add(added)
        self.waiting.append(Expected(added, prompt, max_tokens))

    @precondition(lambda self: self.num_added)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.integers(1, self.num_added + 1))
        self.scheduler.abort(request_id)
        self.waiting = [e for e in self.waiting if e.request.request_id != request_id]
        self.running = [e for e in self.running if e.request.request_id != request_id]

    @rule()
    def step(self) -> None:
        plan = self.plan()
        if plan is None:
            return
        tokens = self.runner.run(plan)
        events = self.scheduler.commit(plan, tokens)
        assert events == self.expect_commit(plan, tokens)
        for expected in self.running:
            if expected.computed:
                assert self.runner.cache[expected.slot] == expected.cached

    @rule()
    def failed_step(self) -> None:
        plan = self.plan()
        if plan is None:
            return
        slots = {row.slot for row in plan.decode} | ({plan.chunk.slot} if plan.chunk else set())
        failed = [e for e in self.running if e.slot in slots]
        assert self.scheduler.fail(plan) == [FailedEvent(e.request.request_id) for e in failed]
        self.running = [e for e in self.running if e.slot not in slots]

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

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        while self.running or self.waiting:
            self.step()
            self.counts_agree()
        assert self.scheduler.schedule() is None

    def plan(self) -> StepPlan | None:
        """The scheduler's plan, which must be the model's."""
        plan = self.scheduler.schedule()
        self.expect_admission()
        assert plan == self.expect_plan()
        return plan

    def expect_admission(self) -> None:
        """First come, first served, and the lowest free slot."""
        while self.waiting and len(self.running) < self.num_slots:
            taken = {e.slot for e in self.running}
            admitted = self.waiting.pop(0)
            admitted.slot = min(set(range(self.num_slots)) - taken)
            self.running.append(admitted)

    def expect_plan(self) -> StepPlan | None:
        """All that can decode, in order of admission, then a chunk of the oldest unfinished prompt."""
        if not self.running:
            return None
        decoding = [e for e in self.running if e.output]
        prefilling = [e for e in self.running if not e.output]
        samples = [self.expect_sample(e, row) for row, e in enumerate(decoding)]
        chunk = None
        if prefilling:
            first = prefilling[0]
            end = min(first.computed + self.chunk, len(first.prompt))
            chunk = PrefillChunk(first.slot, first.computed, first.prompt[first.computed : end])
            if end == len(first.prompt):
                samples.append(self.expect_sample(first, len(decoding) + end - first.computed - 1))
        rows = tuple(DecodeRow(e.slot, e.output[-1], len(e.prompt + e.output) - 1) for e in decoding)
        return StepPlan(rows, chunk, tuple(samples))

    def expect_sample(self, expected: Expected, row: int) -> Sample:
        params = SamplingParams(expected.max_tokens, seed=expected.request.request_id)
        return Sample(expected.request.request_id, row, len(expected.output), params)

    def expect_commit(self, plan: StepPlan, tokens: list[int]) -> list[TokenEvent]:
        """Every planned token is in the cache; every sampled request has one token more, and may end."""
        computed = {row.slot: 1 for row in plan.decode}
        if plan.chunk:
            computed[plan.chunk.slot] = len(plan.chunk.tokens)
        for expected in self.running:
            expected.computed += computed.get(expected.slot, 0)
        events = []
        for sample, token in zip(plan.samples, tokens, strict=True):
            [expected] = [e for e in self.running if e.request.request_id == sample.request_id]
            expected.output.append(token)
            output, reason = self.runner.expected(
                expected.prompt, SamplingParams(expected.max_tokens), self.context, {EOS}
            )
            assert expected.output == output[: len(expected.output)]
            ended = expected.output == output
            events.append(TokenEvent(sample.request_id, token, reason if ended else None))
            if ended:
                self.running.remove(expected)
        return events


SchedulerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestScheduler = SchedulerMachine.TestCase


@given(
    prompt=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    chunk=st.integers(1, 45),
    max_tokens=st.integers(1, 6),
)
def test_chunked_prefill_writes_what_a_whole_prefill_writes(
    prompt: list[int], chunk: int, max_tokens: int
) -> None:
    written, said, starts = [], [], []
    for size in (chunk, len(prompt)):
        runner = ScriptedRunner()
        scheduler = Scheduler(1, 64, size, ())
        scheduler.add(request(1, prompt, max_tokens))
        said.append([event.token_id for event in finish(scheduler, runner)])
        written.append(runner.cache[0])
        starts.append([plan.chunk.start for plan in runner.plans if plan.chunk])
    assert written[0] == written[1] == prompt + said[0][:-1]
    assert said[0] == said[1]
    assert starts == [list(range(0, len(prompt), chunk)), [0]]


def test_a_newcomer_starts_at_the_next_step_and_ends_without_waiting() -> None:
    scheduler, runner = Scheduler(2, 100, 4, ()), ScriptedRunner()
    scheduler.add(request(1, [1, 2, 3], max_tokens=50))
    for _ in range(5):
        step(scheduler, runner)
    scheduler.add(request(2, [4, 5], max_tokens=2))
    plan, events = step(scheduler, runner)
    assert plan.decode == (DecodeRow(0, runner.cache[0][-1], 7),)
    assert plan.chunk == PrefillChunk(1, 0, [4, 5])
    assert [(s.request_id, s.row, s.index) for s in plan.samples] == [(1, 0, 5), (2, 2, 0)]
    assert [event.request_id for event in events] == [1, 2]
    _, events = step(scheduler, runner)
    assert [(e.request_id, e.finish_reason) for e in events] == [(1, None), (2, FinishReason.LENGTH)]
    assert scheduler.num_running == 1


def test_decoding_goes_on_while_a_long_prompt_is_prefilled() -> None:
    scheduler, runner = Scheduler(2, 100, 3, ()), ScriptedRunner()
    scheduler.add(request(1, [1]))
    step(scheduler, runner)
    scheduler.add(request(2, list(range(10, 20))))
    for start in (0, 3, 6, 9):
        plan, events = step(scheduler, runner)
        assert plan.chunk
        assert plan.chunk.start == start
        assert [row.slot for row in plan.decode] == [0]
        assert [e.request_id for e in events] == ([1, 2] if start == 9 else [1])


def test_a_freed_slot_goes_to_the_oldest_waiting_request_at_the_next_step() -> None:
    scheduler, runner = Scheduler(2, 100, 8, ()), ScriptedRunner()
    requests = [request(i, [i]) for i in range(1, 5)]
    for each in requests:
        scheduler.add(each)
    step(scheduler, runner)
    assert [r.slot for r in requests] == [0, 1, None, None]
    scheduler.abort(1)
    scheduler.abort(3)
    plan, _ = step(scheduler, runner)
    assert [r.slot for r in requests] == [None, 1, None, 0]
    assert plan.decode == (), "request 2 was next to be prefilled"
    assert plan.chunk
    assert plan.chunk.slot == 1


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "eos_after", "count", "reason"),
    [
        (3, 1, 99, 1, FinishReason.LENGTH),
        (3, 4, 99, 4, FinishReason.LENGTH),
        (3, 99, 1, 1, FinishReason.EOS),
        (3, 4, 4, 4, FinishReason.EOS),
        (3, 99, 99, 5, FinishReason.CONTEXT_LIMIT),
        (7, 99, 99, 1, FinishReason.CONTEXT_LIMIT),
        (3, 5, 99, 5, FinishReason.LENGTH),
    ],
)
def test_why_a_request_ends(
    prompt_tokens: int, max_tokens: int, eos_after: int, count: int, reason: FinishReason
) -> None:
    runner = ScriptedRunner(lambda history: EOS if len(history) - prompt_tokens + 1 == eos_after else 7)
    scheduler = Scheduler(1, 8, 2, {EOS})
    scheduler.add(request(1, [5] * prompt_tokens, max_tokens))
    events = finish(scheduler, runner)
    assert [event.finish_reason for event in events] == [None] * (count - 1) + [reason]
    assert scheduler.num_running == scheduler.num_cached_tokens == 0


@pytest.mark.parametrize(
    ("max_tokens", "count", "reason"), [(4, 4, FinishReason.LENGTH), (99, 5, FinishReason.CONTEXT_LIMIT)]
)
def test_an_ignored_end_token_is_a_token_like_any_other(
    max_tokens: int, count: int, reason: FinishReason
) -> None:
    runner, scheduler = ScriptedRunner(lambda history: EOS), Scheduler(1, 8, 2, {EOS})
    scheduler.add(Request(1, [5, 5, 5], SamplingParams(max_tokens, ignore_eos=True)))
    events = finish(scheduler, runner)
    assert [event.token_id for event in events] == [EOS] * count
    assert [event.finish_reason for event in events] == [None] * (count - 1) + [reason]


@pytest.mark.parametrize("prompt_tokens", [0, 8, 9])
def test_a_prompt_that_cannot_run_is_a_bug(prompt_tokens: int) -> None:
    scheduler = Scheduler(1, 8, 2, ())
    with pytest.raises(ValueError, match=f"bug: a prompt of {prompt_tokens} tokens"):
        scheduler.add(request(1, [5] * prompt_tokens))
    assert scheduler.schedule() is None


@pytest.mark.parametrize("tokens", [[], [1, 2]])
def test_a_run_answers_every_sample_once(tokens: list[int]) -> None:
    scheduler = Scheduler(1, 8, 2, ())
    scheduler.add(request(1, [5]))
    plan = scheduler.schedule()
    assert plan
    with pytest.raises(ValueError, match="zip"):
        scheduler.commit(plan, tokens)


def test_planning_again_plans_the_same() -> None:
    scheduler, runner = Scheduler(2, 20, 2, ()), ScriptedRunner()
    scheduler.add(request(1, [1, 2, 3]))
    scheduler.add(request(2, [4, 5]))
    for _ in range(4):
        assert scheduler.schedule() == scheduler.schedule()
        step(scheduler, runner)


def test_integrity_check_sees_a_lost_slot_and_a_shared_one() -> None:
    scheduler = Scheduler(2, 8, 2, ())
    requests = [request(1, [1]), request(2, [2])]
    for each in requests:
        scheduler.add(each)
    scheduler.schedule()
    requests[1].slot = 0
    with pytest.raises(AssertionError, match="owned"):
        scheduler.check_integrity()
    requests[1].slot = None
    with pytest.raises(AssertionError, match="owned"):
        scheduler.check_integrity()
