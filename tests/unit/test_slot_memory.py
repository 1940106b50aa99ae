"""Admission by memory: what requests reserve and slots keep is never too much, and all get through."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_grpc.engine.request import FailedEvent, Request, TokenEvent
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import SlotRelease, StepPlan, StepResult
from tests.unit.scheduling import EOS, finish, request, slot_scheduler, slot_table, step, tokens_of
from tests.unit.scripted_runner import ScriptedRunner

TOKENS = 6


class MeasuredRunner(ScriptedRunner):
    """Knows how much of each slot has memory, by what plans say, not by anybody's books."""

    def __init__(self) -> None:
        super().__init__(lambda history: (len(history) * 7 + sum(history)) % TOKENS)
        self.touched: dict[int, int] = {}
        self.most = 0

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step, as ``ModelRunner`` says."""
        self.measure(plan)
        return super().run(plan)

    def measure(self, plan: StepPlan) -> None:
        """Give back and touch what the plan does."""
        for release in plan.releases:
            self.touched[release.slot] = min(self.touched.get(release.slot, 0), release.num_kept)
        for copy in plan.copies:
            self.touch(copy.target, copy.num_tokens)
        for row in plan.decode:
            self.touch(row.slot, row.position + 1)
        if plan.chunk:
            self.touch(plan.chunk.slot, plan.chunk.start + len(plan.chunk.tokens))

    def touch(self, slot: int, num_tokens: int) -> None:
        self.touched[slot] = max(self.touched.get(slot, 0), num_tokens)
        self.most = max(self.most, sum(self.touched.values()))


class MemoryMachine(RuleBasedStateMachine):
    """Any interleaving of additions, aborts, steps and failed steps."""

    @initialize(
        num_slots=st.integers(1, 5),
        room=st.integers(2, 60),
        context=st.integers(2, 24),
        chunk=st.integers(1, 6),
        guesses=st.integers(0, 4),
    )
    def start(self, num_slots: int, room: int, context: int, chunk: int, guesses: int) -> None:
        self.room, self.context = room, min(context, room)
        budget = StepBudget(chunk, guesses)
        self.scheduler = slot_scheduler(num_slots, self.context, chunk, {EOS}, budget, room)
        self.runner = MeasuredRunner()
        self.requests: dict[int, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.outputs: dict[int, list[int]] = {}

    @rule(data=st.data(), max_tokens=st.integers(1, 20), salt=st.sampled_from(["", "", "other", None]))
    def add(self, data: st.DataObject, max_tokens: int, salt: str | None) -> None:
        earlier = [[], *([*r.prompt_ids, *r.output_ids] for r in self.requests.values())]
        begin = data.draw(st.sampled_from(earlier))[: data.draw(st.integers(0, self.context - 2))]
        most = self.context - 1 - len(begin)
        prompt = begin + data.draw(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=most))
        added = request(len(self.requests), prompt, max_tokens, salt=salt)
        self.requests[added.request_id] = added
        self.outputs[added.request_id] = []
        self.waiting.append(added)
        self.scheduler.add(added)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.scheduler.abort(request_id)
        self.waiting = [r for r in self.waiting if r.request_id != request_id]
        self.running = [r for r in self.running if r.request_id != request_id]

    @rule(times=st.integers(1, 8))
    def steps(self, times: int) -> None:
        for _ in range(times):
            if plan := self.plan():
                self.take(tokens_of(self.scheduler.commit(plan, self.runner.run(plan))))

    @rule(far=st.booleans())
    def failed_step(self, far: bool) -> None:
        """What a failed run did is not known: all of its plan, or nothing."""
        plan = self.plan()
        if plan is None:
            return
        if far:
            self.runner.measure(plan)
            self.runner._first_tokens.remember(plan)
        written = {row.slot for row in plan.decode} | {copy.target for copy in plan.copies}
        for slot in written | ({plan.chunk.slot} if plan.chunk else set()):
            self.runner.cache[slot] = [-1]
        failed = {event.request_id for event in self.scheduler.fail(plan)}
        self.running = [r for r in self.running if r.request_id not in failed]

    @invariant()
    def memory_is_enough(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        assert self.runner.most <= self.room
        reserved = {r.slot: self.most_of(r) for r in self.running if r.slot is not None}
        slots = {*reserved, *self.runner.touched}
        memory = slot_table(self.scheduler).memory
        # Releases of a failed run are still to be done.
        kept = {release.slot: release.num_kept for release in memory.releases}
        touched = {slot: min(kept.get(slot, n), n) for slot, n in self.runner.touched.items()}
        assert sum(max(reserved.get(slot, 0), touched.get(slot, 0)) for slot in slots) <= self.room

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        num_steps = 0
        while self.running or self.waiting:
            num_steps += 1
            assert num_steps < 500, "somebody hangs"
            assert self.plan(), "somebody waits, and nobody runs"
            self.steps(1)
            self.memory_is_enough()
        assert self.scheduler.schedule() is None

    def plan(self) -> StepPlan | None:
        """The next plan; who it admits has waited longest, and who waited alone does not wait."""
        plan = self.scheduler.schedule()
        assert self.scheduler.schedule() == plan, "planning again plans the same"
        while self.waiting and self.waiting[0].slot is not None:
            self.running.append(self.waiting.pop(0))
        assert all(r.slot is None for r in self.waiting), "nobody overtakes"
        assert self.running or not self.waiting
        if self.waiting and not (plan and plan.copies) and slot_table(self.scheduler).free:
            reserved = sum(map(self.most_of, self.running))
            assert reserved + self.most_of(self.waiting[0]) > self.room, "who fits does not wait"
        return plan

    def take(self, events: list[TokenEvent]) -> None:
        """Every answer is what the request would get alone."""
        for event in events:
            asked, output = self.requests[event.request_id], self.outputs[event.request_id]
            output.append(event.token_id)
            whole, reason = self.runner.expected(asked.prompt_ids, asked.params, self.context, {EOS})
            assert output == whole[: len(output)]
            assert event.finish_reason == (reason if output == whole else None)
            if event.finish_reason:
                self.running = [r for r in self.running if r is not asked]

    def most_of(self, asked: Request) -> int:
        return min(len(asked.prompt_ids) + asked.params.max_tokens, self.context)


MemoryMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestMemory = MemoryMachine.TestCase


def served(room: int, num_slots: int = 4, context: int = 100) -> tuple[Scheduler, ScriptedRunner]:
    return slot_scheduler(num_slots, context, 16, (), None, room), ScriptedRunner()


def test_requests_run_together_as_far_as_memory_goes() -> None:
    scheduler, runner = served(room=50)
    requests = [request(index, [index + 1] * 10, max_tokens=10) for index in range(3)]
    for each in requests:
        scheduler.add(each)
    step(scheduler, runner)
    assert [r.slot for r in requests] == [0, 1, None]
    finish(scheduler, runner)
    assert all(len(r.output_ids) == 10 for r in requests)


def test_a_small_request_does_not_overtake_one_that_waits_for_memory() -> None:
    scheduler, runner = served(room=100)
    requests = [request(0, [1], 59), request(1, [2], 69), request(2, [3], 9)]
    for each in requests:
        scheduler.add(each)
    step(scheduler, runner)
    assert [r.slot is None for r in requests] == [False, True, True]
    scheduler.abort(0)
    step(scheduler, runner)
    assert [r.slot is None for r in requests[1:]] == [False, False]


def test_what_was_used_longest_ago_is_given_up_first_and_its_beginning_last() -> None:
    scheduler, runner = served(room=90)
    for index in range(3):
        scheduler.add(request(index, [index + 1] * 20, max_tokens=10))
        finish(scheduler, runner)
    scheduler.add(request(3, [9] * 30, max_tokens=10))  # 87 tokens are kept, 90 there are
    plan, _ = step(scheduler, runner)
    assert plan.releases == (SlotRelease(0, 0), SlotRelease(1, 21))


def test_a_long_slots_tail_is_given_back_for_a_short_request_where_memory_is_short() -> None:
    scheduler, runner = served(room=100, num_slots=1)
    scheduler.add(request(0, [1] * 60, max_tokens=10, salt=None))
    finish(scheduler, runner)
    scheduler.add(request(1, [2] * 5, max_tokens=10))
    plan, _ = step(scheduler, runner)
    assert plan.releases == (), "there is room for both"
    assert slot_table(scheduler).memory.num_tokens == 69
    finish(scheduler, runner)
    scheduler, runner = served(room=70, num_slots=2)
    scheduler.add(request(0, [1] * 60, max_tokens=10, salt=None))
    finish(scheduler, runner)
    scheduler.add(request(1, [2] * 5, max_tokens=10))
    scheduler.add(request(2, [3] * 5, max_tokens=10))
    plan, _ = step(scheduler, runner)
    assert plan.releases == (SlotRelease(0, 15),)
    assert slot_table(scheduler).memory.num_tokens == 30


def test_what_a_prompt_begins_with_is_given_up_for_no_other_reason_than_itself() -> None:
    """There is no room to copy it: the request takes the slot where it is."""
    scheduler, runner = served(room=60)
    system = list(range(1, 31))
    scheduler.add(request(0, [*system, 40], max_tokens=20))
    finish(scheduler, runner)
    again = request(1, [*system, 41], max_tokens=20)
    scheduler.add(again)
    plan, _ = step(scheduler, runner)
    assert (again.slot, again.num_cached, plan.copies) == (0, 30, ())


def test_wrong_guesses_have_memory_too() -> None:
    prompt = [1, 2, 3, 4] * 4
    runner = ScriptedRunner(lambda history: 1 if history == prompt else EOS)
    scheduler = slot_scheduler(1, 100, 16, {EOS}, StepBudget(16, 8), 100)
    scheduler.add(request(0, prompt, max_tokens=50))
    finish(scheduler, runner)
    chunk = runner.plans[-1].chunk
    assert chunk
    assert chunk.num_guesses > 0
    assert slot_table(scheduler).memory.num_tokens == chunk.start + len(chunk.tokens)
    assert len(slot_table(scheduler).tokens(0)) == chunk.start + 1


def test_a_failed_run_may_not_have_given_back_what_it_was_to() -> None:
    scheduler, runner = served(room=60)
    scheduler.add(request(0, [1] * 30, max_tokens=10))
    finish(scheduler, runner)
    for request_id in (1, 2):
        scheduler.add(request(request_id, [request_id + 1] * 20, max_tokens=10))
    plan = scheduler.schedule()
    assert plan
    assert plan.releases
    assert scheduler.fail(plan) == [FailedEvent(1)]
    again, _ = step(scheduler, runner)
    assert again.releases == plan.releases
    later, _ = step(scheduler, runner)
    assert later.releases == ()


def test_a_request_that_never_fits_is_a_bug() -> None:
    scheduler, _ = served(room=20)
    with pytest.raises(ValueError, match="bug: a request of 21 tokens was admitted to a cache of 20"):
        scheduler.add(request(0, [1] * 11, max_tokens=10))
