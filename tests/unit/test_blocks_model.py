"""The scheduler over blocks: whatever happens, everybody gets the tokens that he would get alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_grpc.engine.block_digest import digests
from llm_grpc.engine.request import Event, FailedEvent, Request, TokenEvent
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import StepPlan
from llm_grpc.engine.waiting import AGEING_S
from llm_grpc.sampling_params import FinishReason
from tests.unit.scheduling import EOS, block_scheduler, request
from tests.unit.scripted_constraint import ScriptedConstraint
from tests.unit.scripted_paged_runner import ScriptedPagedRunner
from tests.unit.scripted_runner import VOCAB, scored

TOKENS = 6


def _next_token(history: Sequence[int]) -> int:
    """The end comes rarely, so that texts grow until memory is short."""
    number = (len(history) * 7 + sum(history)) % 31
    return 1 + number % (TOKENS - 1) if number else EOS


options = st.fixed_dictionaries(
    {},
    optional={
        "group": st.integers(0, 2),
        "priority": st.sampled_from([-1, 3]),
        "first_score": st.sampled_from([1, 4]),
        "num_prompt_logprobs": st.integers(0, 2),
        "num_logprobs": st.integers(0, 2),
        "min_tokens": st.integers(0, 6),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.sampled_from([(2,), (EOS, 3)]),
        "frequency_penalty": st.just(0.5),
        "constraint": st.builds(
            ScriptedConstraint,
            st.integers(1, 9),
            st.integers(-9, 4),
            st.sampled_from(["start", "wait", "advance", "is_complete"]),
        ),
    },
)
"""What a request asks for besides tokens."""


class BlocksMachine(RuleBasedStateMachine):
    """Any interleaving of additions, aborts, steps and failed steps, where memory is often short."""

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

    @rule(
        data=st.data(),
        max_tokens=st.integers(1, 30),
        salts=st.lists(st.sampled_from(["", "", "other", None]), min_size=1, max_size=4),
        common=st.sampled_from([{}, {"group": 1}]),
    )
    def add(
        self, data: st.DataObject, max_tokens: int, salts: list[str | None], common: dict[str, Any]
    ) -> None:
        for salt in salts:
            self.add_one(data, max_tokens, salt, {**data.draw(options), **common})

    def add_one(self, data: st.DataObject, max_tokens: int, salt: str | None, fields: dict[str, Any]) -> None:
        earlier = [[], *([*r.prompt_ids, *r.output_ids] for r in self.requests.values())]
        begin = data.draw(st.sampled_from(earlier))[: data.draw(st.integers(0, self.context - 2))]
        most = min(self.context - 1 - len(begin), 10)
        prompt = begin + data.draw(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=most))
        arrived_s = float(len(self.requests))
        added = request(
            len(self.requests), prompt, max_tokens, salt=salt, arrived_s=arrived_s, **deepcopy(fields)
        )
        self.scheduler.add(added)
        self.remember(added)

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
        for first, second in itertools.product(running, waiting):
            assert first.request_id < second.request_id or _key(first) <= _key(second), "who is first runs"

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
        assert not len(self.scheduler._private_salts)
        for asked in self.requests.values():
            if asked.params.cache_disabled:
                names = digests(asked.salt or "", asked.prompt_ids, self.blocks._block_size)
                assert self.blocks.pool.find(names) == [], "nothing is left"

    def remember(self, asked: Request) -> None:
        self.requests[asked.request_id] = asked
        self.outputs[asked.request_id] = asked.output_ids[:]
        self.live.append(asked)

    def waits_for(self, asked: Request, mate: Request) -> bool:
        """Whether ``mate``, which is older, has yet to compute what ``asked`` may have and has not."""
        if not asked.group or (asked.group, asked.salt) != (mate.group, mate.salt):
            return False
        pairs = zip(asked.prompt_ids, mate.prompt_ids, strict=False)
        common = next(
            (at for at, (a, b) in enumerate(pairs) if a != b),
            min(map(len, (asked.prompt_ids, mate.prompt_ids))),
        )
        return max(asked.num_computed, mate.num_computed) < min(common, self.most_found(asked))

    def most_found(self, asked: Request) -> int:
        """How many of its tokens a request may find: it computes what its scores and its first token need."""
        first = asked.first_score
        if first is None or first + len(asked.prompt_scores) >= len(asked.prompt_ids):
            return len(asked.known_ids) - 1
        return first + len(asked.prompt_scores) - 1

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
            if asked.num_computed == asked.num_cached and any(
                self.waits_for(asked, mate) for mate in running[: running.index(asked)]
            ):
                continue
            num_tokens = min(left, self.max_chunk, len(asked.known_ids) - asked.num_computed)
            if num_tokens:
                wanted.append((asked.slot, asked.num_computed, num_tokens))
            left -= num_tokens
        assert [(chunk.slot, chunk.start, len(chunk.tokens)) for chunk in plan.chunks] == wanted
        return plan

    def take(self, events: Sequence[Event]) -> None:
        """Every answer is what the request would get alone, and nothing is said twice."""
        for event in events:
            asked, output = self.requests[event.request_id], self.outputs[event.request_id]
            if isinstance(event, FailedEvent):
                assert _fails(asked, len(output)), "only its own constraint fails a request"
                self.live.remove(asked)
                continue
            assert not _fails(asked, len(output))
            assert event.token_id == _chosen(asked, output)
            self.check_scores(asked, output, event)
            output.append(event.token_id)
            assert output == asked.output_ids[: len(output)]
            if isinstance(asked.constraint, ScriptedConstraint):
                assert asked.constraint.said[: len(output)] == output
            assert event.finish_reason is _reason(asked, output, self.context)
            if event.finish_reason:
                self.live.remove(asked)

    def check_scores(self, asked: Request, output: list[int], event: TokenEvent) -> None:
        """Scores are those of the request's own history; the prompt's come once, all together."""
        history, params = [*asked.prompt_ids, *output], asked.params
        wanted = None
        if params.num_logprobs is not None:
            wanted = scored(history, event.token_id, params.num_logprobs)
        assert event.score == wanted
        first, num_top = asked.first_score, params.num_prompt_logprobs or 0
        places = range(first, len(asked.prompt_ids)) if first is not None and not output else ()
        prompt = list(asked.prompt_ids)
        assert event.prompt_scores == tuple(scored(prompt[:at], prompt[at], num_top) for at in places)
        most = len(prompt) if first is None else min(first, len(prompt))
        assert event.cached_tokens < most
        assert not event.cached_tokens or asked.salt is not None


def _key(asked: Request) -> float:
    return asked.arrived_s - asked.priority * AGEING_S


def _fails(asked: Request, place: int) -> bool:
    """Whether the constraint fails at this place: in ``is_complete`` only where nothing else ends it."""
    constraint = asked.constraint
    if not isinstance(constraint, ScriptedConstraint) or constraint.fails_at != place:
        return False
    output = asked.output_ids[:place]
    return constraint.fails_in != "is_complete" or _chosen(asked, output) not in _ends(asked)


def _ends(asked: Request) -> set[int]:
    return {*asked.params.stop_token_ids, *(() if asked.params.ignore_eos else (EOS,))}


def _chosen(asked: Request, output: list[int]) -> int:
    """What the script says next, or the next token after it that may come."""
    token, constraint = _next_token([*asked.prompt_ids, *output]), asked.constraint
    banned = _ends(asked) if len(output) < asked.params.min_tokens else ()
    while token in banned or (
        isinstance(constraint, ScriptedConstraint) and not constraint.allows(len(output), token)
    ):
        token = (token + 1) % VOCAB
    return token


def _reason(asked: Request, output: list[int], context: int) -> FinishReason | None:
    params, constraint = asked.params, asked.constraint
    is_whole = isinstance(constraint, ScriptedConstraint) and len(output) >= constraint.length
    reasons = [
        (FinishReason.EOS, output[-1] == EOS and not params.ignore_eos),
        (FinishReason.STOP, output[-1] in params.stop_token_ids or is_whole),
        (FinishReason.LENGTH, len(output) == params.max_tokens),
        (FinishReason.CONTEXT_LIMIT, len(asked.prompt_ids) + len(output) == context),
    ]
    return next((reason for reason, holds in reasons if holds), None)


BlocksMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestBlocks = BlocksMachine.TestCase
