"""Requests of one group compute the beginning of their prompts once, whatever memory they run in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.engine.blocks import Blocks
from llm_grpc.engine.request import FailedEvent, Request, TokenEvent
from llm_grpc.engine.step_plan import StepPlan
from tests.unit.scheduling import block_scheduler, finish, request, slot_scheduler, slot_table, step
from tests.unit.scripted_paged_runner import ScriptedPagedRunner
from tests.unit.scripted_runner import ScriptedRunner, scored

SIZE = 4
CONTEXT = 80
PROMPT = list(range(1, 23))
"""Five blocks and two tokens."""

both = pytest.mark.parametrize("kind", ["slots", "blocks"])


class Bench:
    """A scheduler over slots or blocks; counts what chunks compute."""

    def __init__(
        self,
        kind: str,
        num_slots: int = 8,
        chunk_tokens: int = 8,
        num_blocks: int = 200,
        max_chunk_tokens: int = 1024,
    ) -> None:
        self.blocks: Blocks | None = None
        if kind == "slots":
            self.runner = ScriptedRunner()
            self.scheduler = slot_scheduler(num_slots, CONTEXT, chunk_tokens, ())
        else:
            self.scheduler, self.blocks = block_scheduler(
                num_blocks, SIZE, num_slots, CONTEXT, chunk_tokens, max_chunk_tokens=max_chunk_tokens
            )
            self.runner = ScriptedPagedRunner(num_blocks, SIZE, references=self.blocks.pool.references)
        self.requests: list[Request] = []

    @property
    def num_computed(self) -> int:
        return sum(len(chunk.tokens) for plan in self.runner.plans for chunk in plan.chunks)

    def add(self, prompt: list[int], max_tokens: int = 5, **fields: Any) -> Request:
        added = request(len(self.requests), prompt, max_tokens, **fields)
        self.requests.append(added)
        self.scheduler.add(added)
        return added

    def add_group(self, prompts: Iterable[list[int]], max_tokens: int = 5, **fields: Any) -> list[Request]:
        return [self.add(prompt, max_tokens, group=7, **fields) for prompt in prompts]

    def step(self) -> StepPlan:
        return step(self.scheduler, self.runner)[0]

    def finish(self) -> list[TokenEvent]:
        """Step until nothing is left; everybody has got what he gets alone."""
        events = finish(self.scheduler, self.runner)
        for asked in self.requests:
            assert asked.output_ids == self.runner.expected(asked.prompt_ids, asked.params, CONTEXT)[0]
        return events

    def end(self, *gone: Request) -> None:
        for each in gone:
            self.requests.remove(each)


def num_prefixes(prompts: Sequence[Sequence[int]]) -> int:
    """Different beginnings: what has to be computed of all of them together."""
    return len({tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)})


@both
@pytest.mark.parametrize("salt", ["", "tenant", None])
@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 19, 20, 21, 22])
def test_sequences_of_one_prompt_compute_it_once(kind: str, salt: str | None, num_tokens: int) -> None:
    bench = Bench(kind)
    bench.add_group([PROMPT[:num_tokens]] * 6, salt=salt)
    events = bench.finish()
    assert bench.num_computed == num_tokens + 5
    assert sorted(event.cached_tokens for event in events)[-6:] == [0, *[num_tokens - 1] * 5]


@both
@pytest.mark.parametrize("salt", ["", None])
@pytest.mark.parametrize("num_shared", [2, 3, 4, 5, 20, 21, 22])
def test_continuations_of_one_beginning_compute_it_once(kind: str, salt: str | None, num_shared: int) -> None:
    """Each is scored from its own first token on, and ends when its prompt does."""
    bench = Bench(kind, num_slots=10)
    ends = [[30, 31], [30, 32], [33], [34, 35, 36, 37, 38], [39]]
    prompts = [PROMPT[:num_shared] + end for end in ends]
    bench.add_group(prompts, 1, salt=salt, first_score=num_shared)
    events = {event.request_id: event for event in bench.finish()}
    for number, prompt in enumerate(prompts):
        places = range(num_shared, len(prompt))
        assert events[number].prompt_scores == tuple(scored(prompt[:at], prompt[at]) for at in places)
    again = len(ends) - 1  # the row before its first token is each one's own
    assert bench.num_computed == num_shared + again + sum(map(len, ends))


def test_continuations_are_computed_together_once_their_beginning_is() -> None:
    bench = Bench("blocks", chunk_tokens=64)
    bench.add_group([[*PROMPT, 30 + number, 5] for number in range(6)], 1, first_score=len(PROMPT))
    assert len(bench.step().chunks) == 1
    assert [list(chunk.tokens) for chunk in bench.step().chunks] == [[22, 31 + n, 5] for n in range(5)]
    assert bench.scheduler.schedule() is None


@settings(deadline=None)
@given(
    kind=st.sampled_from(["slots", "blocks"]),
    begin=st.lists(st.integers(1, 3), max_size=30),
    ends=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=6),
    max_tokens=st.integers(1, 5),
    chunk_tokens=st.integers(1, 40),
    salt=st.sampled_from(["", "tenant", None]),
)
def test_a_group_computes_each_beginning_once(
    kind: str,
    begin: list[int],
    ends: list[list[int]],
    max_tokens: int,
    chunk_tokens: int,
    salt: str | None,
) -> None:
    bench = Bench(kind, len(ends), chunk_tokens)
    prompts = [begin + end for end in ends]
    bench.add_group(prompts, max_tokens, salt=salt)
    bench.finish()
    assert bench.num_computed <= num_prefixes(prompts) + len(prompts) - 1


@both
def test_a_group_that_nobody_else_may_find_leaves_nothing(kind: str) -> None:
    bench = Bench(kind)
    computed = []
    for group in (1, 2):
        for _ in range(3):
            bench.add(PROMPT, salt=None, group=group)
        bench.add(PROMPT, salt=None)
    bench.finish()
    computed.append(bench.num_computed)
    bench.add(PROMPT, salt=None, group=1)
    bench.add(PROMPT)
    bench.finish()
    computed.append(bench.num_computed - computed[0])
    assert computed == [2 * (len(PROMPT) + 2) + 2 * len(PROMPT), 2 * len(PROMPT)]
    if bench.blocks:
        assert len(bench.blocks.pool._kept) == (len(PROMPT) + 4) // SIZE, "of the one that leaves something"
        bench.blocks.pool.check_integrity()
    else:
        kept = [bool(slot_table(bench.scheduler).tokens(slot)) for slot in range(8)]
        assert sum(kept) == 1


@both
def test_what_a_group_s_last_one_shares_does_not_matter(kind: str) -> None:
    """Of two with the same number one has the cache: the other's leavings go all the same."""
    bench = Bench(kind)
    bench.add(PROMPT, 1, salt=None, group=1)
    bench.add(PROMPT[::-1], 9, group=1)
    bench.finish()
    before = bench.num_computed
    bench.add(PROMPT, salt=None, group=1)
    bench.finish()
    assert bench.num_computed - before == len(PROMPT)


@both
def test_other_salts_and_other_groups_do_not_share(kind: str) -> None:
    bench = Bench(kind)
    for group, salt in ((1, "a"), (1, "b"), (1, None), (2, None)):
        bench.add(PROMPT, salt=salt, group=group)
    bench.finish()
    assert bench.num_computed == 4 * len(PROMPT)


def test_who_waits_for_its_group_lets_others_pass() -> None:
    bench = Bench("blocks", chunk_tokens=16)
    bench.add_group([PROMPT] * 3)
    stranger = bench.add([40, 41, 42])
    bench.step()
    plan = bench.step()
    slots = [chunk.slot for chunk in plan.chunks]
    assert slots[0] == bench.requests[0].slot
    assert stranger.slot in slots
    assert len(slots) == 2
    assert len(stranger.output_ids) == 1
    bench.finish()


@both
@pytest.mark.parametrize("salt", ["", None])
def test_a_group_in_one_slot_runs_one_after_the_other(kind: str, salt: str | None) -> None:
    """A block that is not full goes with who ran, where nobody else of the group has a slot."""
    bench = Bench(kind, num_slots=1)
    bench.add_group([PROMPT] * 4, salt=salt)
    bench.finish()
    again = 1 if kind == "slots" else len(PROMPT) % SIZE
    assert bench.num_computed == len(PROMPT) + 3 * again


@both
@pytest.mark.parametrize("salt", ["", None])
@pytest.mark.parametrize("is_fault", [False, True])
def test_who_leads_may_leave(kind: str, salt: str | None, is_fault: bool) -> None:
    """What it had computed of good steps is not computed again."""
    bench = Bench(kind, chunk_tokens=9)
    leader, *_ = bench.add_group([PROMPT] * 4, salt=salt)
    bench.step()
    if is_fault:
        plan = bench.scheduler.schedule()
        assert plan
        if isinstance(bench.runner, ScriptedPagedRunner):
            bench.runner.spoil(plan)
        assert bench.scheduler.fail(plan) == [FailedEvent(leader.request_id)]
    else:
        bench.scheduler.abort(leader.request_id)
    bench.scheduler.check_integrity()
    bench.end(leader)
    bench.finish()
    lost = 9 if is_fault and kind == "slots" else 0  # nothing is known of a slot that was to be written
    assert bench.num_computed == len(PROMPT) + lost + 2


def test_everybody_gets_on_where_the_leader_gives_way() -> None:
    bench = Bench("blocks", num_slots=5, chunk_tokens=4, num_blocks=19)
    for number in range(3):
        bench.add([60 + number] * 3, max_tokens=20)
    bench.step()
    bench.add_group([PROMPT[:14]] * 3, max_tokens=10)
    bench.finish()
    assert bench.scheduler.num_preemptions


def test_a_copy_reads_a_block_before_somebody_else_writes_there() -> None:
    """Whoever leads ends with its prompt, and its last block goes to a newcomer in the next step."""
    bench = Bench("blocks", num_slots=3, chunk_tokens=64, num_blocks=20)
    leader, mate = bench.add_group([PROMPT, [*PROMPT, 30]], 1)
    bench.step()
    assert leader.slot is None
    assert mate.num_computed == len(PROMPT)
    newcomers = [bench.add([50 + number] * 13, max_tokens=3) for number in range(2)]
    plan = bench.step()
    [copy] = plan.block_copies
    assert bench.blocks
    taken = {block for newcomer in newcomers for block in bench.blocks.table(newcomer).blocks}
    assert copy.source in taken
    bench.finish()
    assert bench.num_computed == len(PROMPT) + 1 + 26


@pytest.mark.parametrize("is_far", [False, True])
def test_a_copy_of_a_failed_run_is_not_trusted(is_far: bool) -> None:
    """Who has no part in the step keeps its full blocks, and computes the rest."""
    bench = Bench("blocks", chunk_tokens=len(PROMPT))
    bench.add(PROMPT, 1, group=7)
    failing, mate = bench.add([50] * 30), bench.add([*PROMPT, 30], 1, group=7)
    bench.step()
    plan = bench.scheduler.schedule()
    assert plan
    assert len(plan.block_copies) == 1
    assert [chunk.slot for chunk in plan.chunks] == [failing.slot]
    assert mate.num_computed == len(PROMPT)
    if is_far and isinstance(bench.runner, ScriptedPagedRunner):
        bench.runner.spoil(plan)
    assert bench.scheduler.fail(plan) == [FailedEvent(failing.request_id)]
    bench.scheduler.check_integrity()
    bench.end(failing)
    assert mate.num_computed == mate.num_cached == len(PROMPT) // SIZE * SIZE
    assert bench.step().block_copies == ()
    bench.finish()


@pytest.mark.parametrize("is_far", [False, True])
def test_who_fails_with_a_copy_hands_on_what_is_sure(is_far: bool) -> None:
    """The next of the group is not told of a block that may never have been written."""
    bench = Bench("blocks", chunk_tokens=len(PROMPT))
    prompts = [PROMPT, [*PROMPT, *range(30, 60)], [*PROMPT, 70]]
    _, failing, mate = bench.add_group(prompts, 1)
    bench.step()
    plan = bench.scheduler.schedule()
    assert plan
    assert len(plan.block_copies) == 2
    assert [chunk.slot for chunk in plan.chunks] == [failing.slot]
    if is_far and isinstance(bench.runner, ScriptedPagedRunner):
        bench.runner.spoil(plan)
    assert bench.scheduler.fail(plan) == [FailedEvent(failing.request_id)]
    bench.end(failing)
    assert mate.num_computed == len(PROMPT) // SIZE * SIZE
    bench.finish()


def test_a_copy_goes_with_who_was_to_get_it_and_not_with_who_was_to_get_it_first() -> None:
    """A plan is thrown away, and of two that were to get a block the one that was asked for it leaves."""
    bench = Bench("blocks", num_slots=2, chunk_tokens=64)
    leader, first, second = bench.add_group([PROMPT, [*PROMPT, 30], [*PROMPT, 31]], 1)
    bench.step()
    assert leader.slot is None
    plan = bench.scheduler.schedule()
    assert plan
    assert second.num_computed == len(PROMPT), "from the first one, which has not got it yet"
    assert len(plan.block_copies) == 2
    bench.scheduler.abort(first.request_id)
    bench.end(first)
    assert len(bench.step().block_copies) == 1
    bench.finish()
    assert bench.num_computed == len(PROMPT) + 1


def test_nobody_waits_for_what_is_found_elsewhere() -> None:
    """An older one computes again what is in the cache, for its scores."""
    bench = Bench("blocks", chunk_tokens=16, max_chunk_tokens=8)
    bench.add(PROMPT)
    bench.finish()
    bench.add_group([PROMPT], first_score=1)
    [mate] = bench.add_group([[*PROMPT[:20], 30]])
    assert [list(chunk.tokens) for chunk in bench.step().chunks] == [PROMPT[:8], [30]]
    assert mate.num_cached == 20
    bench.finish()


def test_a_full_block_that_is_found_no_more_is_copied_but_for_its_last_token() -> None:
    bench = Bench("blocks", chunk_tokens=64)
    leader, mate = bench.add_group([PROMPT, [*PROMPT, 30]])
    bench.step()
    assert bench.blocks
    assert leader.slot is not None
    name = bench.blocks.pool.name(bench.blocks.table(leader).blocks[4])
    assert name
    bench.blocks.pool.forget(name)
    bench.step()
    assert mate.num_cached == 4 * SIZE + 3
    bench.finish()
