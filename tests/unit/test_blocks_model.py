"""The scheduler over blocks: whatever happens, everybody gets the tokens that he would get alone."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_grpc.engine.request import Request, TokenEvent
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import StepPlan
from tests.unit.scheduling import EOS, block_scheduler, request
from tests.unit.scripted_paged_runner import ScriptedPagedRunner

TOKENS = 6


def _next_token(history: Sequence[int]) -> int:
    """The end comes rarely, so that texts grow until memory is short."""
    number = (len(history) * 7 + sum(history)) % 31
    return 1 + number % (TOKENS - 1) if number else EOS


class BlocksMachine(RuleBasedStateMachine):
    """Any interleaving of additions, forks, aborts, steps and failed steps, where memory is often short."""

    @initialize(
        num_slots=st.integers(1, 6),
        block_size=st.integers(1, 5),
        num_blocks=st.integers(2, 12),
        context=st.integers(8, 40),
        chunk=st.integers(1, 12),
        max_chunk=st.integers(1, 8),
        guesses=st.integers(0, 4),
    )
    def start(
        self,
        num_slots: int,
        block_size: int,
        num_blocks: int,
        context: int,
        chunk: int,
        max_chunk: int,
        guesses: int,
    ) -> None:
        self.context = min(context, num_blocks * block_size)
        self.chunk, self.max_chunk = chunk, max_chunk
        budget = StepBudget(chunk, min(guesses, chunk - 1))
        self.scheduler, self.blocks = block_scheduler(
            num_blocks, block_size, num_slots, self.context, chunk, {EOS}, budget, max_chunk_tokens=max_chunk
        )
        self.runner = ScriptedPagedRunner(num_blocks, block_size, _next_token, self.blocks.pool.references)
        self.requests: dict[int, Request] = {}
        self.live: list[Request] = []
        self.outputs: dict[int, list[int]] = {}
        self.has_forked = False

    @rule(
        data=st.data(),
        max_tokens=st.integers(1, 30),
        salts=st.lists(st.sampled_from(["", "", "other", None]), min_size=1, max_size=4),
    )
    def add(self, data: st.DataObject, max_tokens: int, salts: list[str | None]) -> None:
        for salt in salts:
            self.add_one(data, max_tokens, salt)

    def add_one(self, data: st.DataObject, max_tokens: int, salt: str | None) -> None:
        earlier = [[], *([*r.prompt_ids, *r.output_ids] for r in self.requests.values())]
        begin = data.draw(st.sampled_from(earlier))[: data.draw(st.integers(0, self.context - 2))]
        most = min(self.context - 1 - len(begin), 10)
        prompt = begin + data.draw(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=most))
        added = request(len(self.requests), prompt, max_tokens, salt=salt)
        self.scheduler.add(added)
        self.remember(added)

    @rule(data=st.data(), tokens=st.lists(st.integers(1, TOKENS - 1), min_size=1, max_size=3))
    def fork(self, data: st.DataObject, tokens: list[int]) -> None:
        """Others go on from where a request is; their last token may be another one."""
        if not self.decoding():
            self.steps(2)
        for token in tokens if self.decoding() else []:
            parent = data.draw(st.sampled_from(self.decoding()))
            child = Request(len(self.requests), parent.prompt_ids, parent.params)
            child.output_ids = [*parent.output_ids[:-1], token]
            if self.blocks.fork(parent, child):
                self.scheduler._running[child.request_id] = child
                self.remember(child)
                self.has_forked = True

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.scheduler.abort(request_id)
        self.live = [r for r in self.live if r.request_id != request_id]

    @rule(times=st.integers(1, 8))
    def steps(self, times: int) -> None:
        for _ in range(times):
            if plan := self.plan():
                self.take(self.scheduler.commit(plan, self.runner.run(plan)))

    @rule(far=st.booleans())
    def failed_step(self, far: bool) -> None:
        """What a failed run did is not known: all of its plan, but wrongly, or nothing."""
        plan = self.plan()
        if plan is None:
            return
        if far:
            self.runner.spoil(plan)
        failed = {event.request_id for event in self.scheduler.fail(plan)}
        assert failed
        self.live = [r for r in self.live if r.request_id not in failed]

    @rule()
    def a_plan_that_is_thrown_away(self) -> None:
        self.plan()

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        running = [r for r in self.live if r.slot is not None]
        waiting = [r for r in self.live if r.slot is None]
        assert (self.scheduler.num_running, self.scheduler.num_waiting) == (len(running), len(waiting))
        for asked in running:
            assert asked.slot is not None
            assert all(self.blocks.pool.references(block) for block in self.blocks.table(asked).blocks)
        if not self.has_forked:
            assert all(a.request_id < b.request_id for a in running for b in waiting), "who came first runs"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        num_steps, most = 0, (1 + len(self.live)) * 2 * self.context
        while self.live:
            num_steps += 1
            assert num_steps < most, "somebody hangs"
            assert self.plan(), "somebody waits, and nobody runs"
            self.steps(1)
            self.books_agree()
        assert self.scheduler.schedule() is None
        assert self.blocks.pool.num_free == self.blocks.pool.num_blocks
        assert self.scheduler.num_cached_tokens == 0

    def remember(self, asked: Request) -> None:
        self.requests[asked.request_id] = asked
        self.outputs[asked.request_id] = asked.output_ids[:]
        self.live.append(asked)

    def decoding(self) -> list[Request]:
        return [r for r in self.live if r.slot is not None and not r.is_prefilling]

    def plan(self) -> StepPlan | None:
        """The next plan: all that may decode does, and prompts get what is left of the budget, in order."""
        plan = self.scheduler.schedule()
        running = list(self.scheduler._running.values())
        if plan is None:
            assert not running
            return None
        if any(chunk.num_guesses for chunk in plan.chunks):
            assert len(running) == 1
            return plan
        assert [row.slot for row in plan.decode] == [r.slot for r in running if not r.is_prefilling]
        left = self.chunk
        if plan.decode:
            left = min(StepBudget(self.chunk).beside(len(plan.decode)), left)
        wanted = []
        for asked in (r for r in running if r.is_prefilling):
            num_tokens = min(left, self.max_chunk, len(asked.known_ids) - asked.num_computed)
            if num_tokens:
                wanted.append((asked.slot, asked.num_computed, num_tokens))
            left -= num_tokens
        assert [(chunk.slot, chunk.start, len(chunk.tokens)) for chunk in plan.chunks] == wanted
        return plan

    def take(self, events: list[TokenEvent]) -> None:
        """Every answer is what the request would get alone, and nothing is said twice."""
        for event in events:
            asked, output = self.requests[event.request_id], self.outputs[event.request_id]
            output.append(event.token_id)
            assert output == asked.output_ids[: len(output)]
            assert event.token_id == _next_token([*asked.prompt_ids, *output[:-1]])
            ended = (
                output[-1] == EOS
                or len(output) == asked.params.max_tokens
                or len(asked.prompt_ids) + len(output) == self.context
            )
            assert (event.finish_reason is not None) == ended
            assert event.cached_tokens < len(asked.prompt_ids)
            assert not event.cached_tokens or asked.salt is not None
            if ended:
                self.live.remove(asked)


BlocksMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestBlocks = BlocksMachine.TestCase
