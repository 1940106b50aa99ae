"""Blocks under a scheduler, one rule at a time. ``test_blocks_model`` has them all at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.engine.block_digest import digests
from llm_grpc.engine.blocks import WATERMARK, Blocks
from llm_grpc.engine.request import FailedEvent, Request, TokenEvent
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import LONG_CONTEXT, BlockGrant, PrefillChunk, StepPlan
from llm_grpc.engine.warm_up import warm_up
from llm_grpc.sampling_params import SamplingParams
from tests.unit.scheduling import block_scheduler, finish, request, slot_scheduler, step
from tests.unit.scripted_paged_runner import ScriptedPagedRunner
from tests.unit.scripted_runner import ScriptedRunner, hashed

SIZE = 4
CONTEXT = 60
SYSTEM = list(range(100, 120))
"""Five blocks that prompts begin with."""


class Bench:
    """A scheduler over blocks of four tokens."""

    def __init__(
        self,
        num_blocks: int = 40,
        num_slots: int = 8,
        chunk_tokens: int = 16,
        max_chunk_tokens: int = 1024,
        budget: StepBudget | None = None,
    ) -> None:
        self.scheduler, self.blocks = block_scheduler(
            num_blocks,
            SIZE,
            num_slots,
            CONTEXT,
            chunk_tokens,
            (),
            budget,
            max_chunk_tokens=max_chunk_tokens,
        )
        self.pool = self.blocks.pool
        self.runner = ScriptedPagedRunner(num_blocks, SIZE, hashed, self.pool.references)
        self.requests: list[Request] = []

    def add(self, prompt: list[int], max_tokens: int = 3, salt: str | None = "") -> Request:
        added = request(len(self.requests), prompt, max_tokens, salt=salt)
        self.requests.append(added)
        self.scheduler.add(added)
        return added

    def finish(self) -> list[TokenEvent]:
        """Step until nothing is left; everybody has got the tokens that he gets alone, each once."""
        events = finish(self.scheduler, self.runner)
        for asked in self.requests:
            assert asked.output_ids == self.alone(asked)
        assert self.pool.num_free == self.pool.num_blocks
        return events

    def serve(self, prompt: list[int], max_tokens: int = 3, salt: str | None = "") -> int:
        """Serve one request alone; return how many tokens of its prompt were found."""
        self.add(prompt, max_tokens, salt)
        return sum(event.cached_tokens for event in self.finish())

    def alone(self, asked: Request) -> list[int]:
        return self.runner.expected(asked.prompt_ids, asked.params, CONTEXT)[0]

    def fork(self, parent: Request, token: int) -> Request:
        """A second request on the parent's blocks, whose last token is another one."""
        child = Request(1000 + len(self.scheduler._running), parent.prompt_ids, parent.params)
        child.output_ids = [*parent.output_ids[:-1], token]
        assert self.blocks.fork(parent, child)
        self.scheduler._running[child.request_id] = child
        self.scheduler.check_integrity()
        return child


class WarmRunner(ScriptedPagedRunner):
    """Remembers how much of prompts a step was given, and rows and positions of those without."""

    longest_chunk = most_prefilled = most_rows = 0

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.decoded: set[tuple[int, int]] = set()

    def _write(self, plan: StepPlan) -> list[list[int]]:
        sizes = [len(chunk.tokens) for chunk in plan.chunks]
        self.longest_chunk = max(self.longest_chunk, *sizes, 0)
        self.most_prefilled = max(self.most_prefilled, sum(sizes))
        self.most_rows = max(self.most_rows, len(plan.decode))
        self.decoded |= {(len(plan.decode), row.position) for row in plan.decode if not plan.chunks}
        return super()._write(plan)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        pytest.param(SYSTEM, len(SYSTEM) - SIZE, id="the last block of a whole prompt is computed again"),
        pytest.param([*SYSTEM, 1], len(SYSTEM), id="all full blocks"),
        pytest.param([*SYSTEM[:-1], 1], len(SYSTEM) - SIZE, id="a block with another token"),
        pytest.param([1, *SYSTEM], 0, id="shifted"),
        pytest.param(SYSTEM[:3], 0, id="less than a block"),
    ],
)
def test_full_blocks_of_a_beginning_are_found(prompt: list[int], found: int) -> None:
    bench = Bench()
    assert bench.serve(SYSTEM) == 0
    assert bench.serve(prompt) == found


def test_an_answer_is_found_too() -> None:
    bench = Bench()
    bench.serve(SYSTEM, max_tokens=9)
    answer = bench.requests[0].output_ids
    assert bench.serve([*SYSTEM, *answer, 1], max_tokens=1) == len(SYSTEM) + 8


def test_what_a_running_request_has_computed_is_shared_in_place() -> None:
    bench = Bench(chunk_tokens=100)
    first = bench.add([*SYSTEM, 1], max_tokens=20)
    step(bench.scheduler, bench.runner)
    second = bench.add([*SYSTEM, 2], max_tokens=20)
    plan, _ = step(bench.scheduler, bench.runner)
    assert second.num_cached == len(SYSTEM)
    assert plan.chunks == (PrefillChunk(1, len(SYSTEM), [2]),)
    tables = bench.blocks.table(first).blocks, bench.blocks.table(second).blocks
    assert tables[0][:5] == tables[1][:5]
    assert {bench.pool.references(block) for block in tables[0][:5]} == {2}
    bench.finish()


def test_who_waits_for_its_first_chunk_looks_again_then() -> None:
    """Both are admitted at once, when nothing is there; the second is prefilled behind the first."""
    bench = Bench(chunk_tokens=20)
    first, second = bench.add([*SYSTEM, 1]), bench.add([*SYSTEM, 2])
    step(bench.scheduler, bench.runner)
    num_free = bench.pool.num_free
    plan, _ = step(bench.scheduler, bench.runner)
    assert (first.num_cached, second.num_cached) == (0, len(SYSTEM))
    assert [len(chunk.tokens) for chunk in plan.chunks] == [1, 1]
    assert bench.pool.num_free == num_free + 5, "its own blocks for these tokens are given back"
    bench.finish()


def test_nothing_is_found_before_it_is_computed() -> None:
    bench = Bench(chunk_tokens=8)
    bench.add([*SYSTEM, 1])
    for _ in range(2):
        bench.scheduler.schedule()  # planned, and thrown away
    later = bench.add([*SYSTEM, 2])
    bench.scheduler.schedule()
    assert later.num_cached == 0
    bench.finish()


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("", "", 20),
        ("a", "a", 20),
        ("a", "b", 0),
        ("a", "", 0),
        (None, "", 0),
        ("", None, 0),
        (None, None, 0),
    ],
)
def test_salts_keep_tenants_apart(first: str | None, second: str | None, found: int) -> None:
    """Also while the first one runs."""
    one, both = Bench(chunk_tokens=100), Bench(chunk_tokens=100)
    one.serve(SYSTEM, salt=first)
    assert one.serve([*SYSTEM, 1], salt=second) == found
    both.add([*SYSTEM, 2], salt=first)
    step(both.scheduler, both.runner)
    asked = both.add([*SYSTEM, 1], salt=second)
    both.finish()
    assert asked.num_cached == found


def test_the_same_prompt_of_two_tenants_is_looked_for_twice() -> None:
    bench = Bench(chunk_tokens=100)
    bench.serve([*SYSTEM, 1], salt="a")
    prompt = [*SYSTEM, 2]
    assert [bench.serve(prompt, salt=salt) for salt in ("a", "b", "a", "b")] == [20, 0, 20, 20]


def test_what_a_fork_says_is_found_by_its_own_tenant_alone() -> None:
    bench = Bench()
    parents = [bench.add([index + 1] * 6, max_tokens=12, salt=salt) for index, salt in enumerate(("a", None))]
    while any(parent.is_prefilling for parent in parents):
        step(bench.scheduler, bench.runner)
    forks = [bench.fork(parent, 7) for parent in parents]
    finish(bench.scheduler, bench.runner)
    bench.requests.clear()
    for fork, found in zip(forks, (16, 0), strict=True):
        whole = [*fork.prompt_ids, *fork.output_ids]
        assert bench.serve(whole, max_tokens=1, salt="a") == found
        assert bench.serve(whole, max_tokens=1, salt="b") == 0


def test_the_end_of_what_was_used_longest_ago_is_given_up_first() -> None:
    bench = Bench(num_blocks=15, chunk_tokens=100)
    first, second = [1] * 20, [2] * 20
    bench.serve([*first, 5], max_tokens=1)
    bench.serve([*second, 5], max_tokens=1)
    assert bench.serve([*first, 5], max_tokens=1) == 20, "used again"
    bench.serve([3] * 32, max_tokens=1)  # eight blocks: five blank ones and three
    kept = [len(bench.pool.find(digests("0:", tokens, SIZE))) for tokens in (first, second, [3] * 32)]
    assert kept == [5, 2, 8], "of the second the end is gone"


def test_a_grant_is_made_once() -> None:
    bench = Bench(chunk_tokens=8)
    bench.add(list(range(1, 11)), max_tokens=6)
    grants = []
    while plan := bench.scheduler.schedule():
        grants.append([(grant.first, len(grant.blocks)) for grant in plan.grants])
        bench.scheduler.commit(plan, bench.runner.run(plan))
    assert grants == [[(0, 3)], [], [], [], [(3, 1)], [], []]


def test_a_failed_run_may_not_have_come_to_its_grants() -> None:
    bench = Bench(num_slots=2, chunk_tokens=8)
    failing, other = bench.add(list(range(1, 9))), bench.add(list(range(21, 29)))
    plan = bench.scheduler.schedule()
    assert plan
    assert [grant.slot for grant in plan.grants] == [0, 1]
    assert bench.scheduler.fail(plan) == [FailedEvent(failing.request_id)]
    bench.scheduler.check_integrity()
    bench.requests.remove(failing)
    again, _ = step(bench.scheduler, bench.runner)
    table = bench.blocks.table(other)
    assert again.grants == (BlockGrant(1, 0, tuple(table.blocks)),)
    bench.finish()


def test_a_failed_run_leaves_what_good_ones_computed_and_nothing_else() -> None:
    bench = Bench(chunk_tokens=8)
    bench.add([*SYSTEM, 1])
    step(bench.scheduler, bench.runner)
    plan = bench.scheduler.schedule()
    assert plan
    bench.runner.spoil(plan)
    bench.scheduler.fail(plan)
    bench.requests.clear()
    assert bench.serve([*SYSTEM, 2]) == 8


def test_several_prompts_share_a_step_in_order_until_the_budget_is_used() -> None:
    bench = Bench(chunk_tokens=20, max_chunk_tokens=8)
    for index, length in enumerate((10, 5, 9, 9)):
        bench.add([index + 1] * length, max_tokens=30)
    plans = [step(bench.scheduler, bench.runner) for _ in range(3)]
    shapes = [[(chunk.slot, chunk.start, len(chunk.tokens)) for chunk in plan.chunks] for plan, _ in plans]
    assert shapes == [
        [(0, 0, 8), (1, 0, 5), (2, 0, 7)],
        [(0, 8, 2), (2, 7, 2), (3, 0, 8)],
        [(3, 8, 1)],
    ]
    assert [event.request_id for event in plans[-1][1]] == [0, 1, 2, 3]
    bench.finish()


def test_a_request_is_admitted_for_what_it_knows_and_those_that_run_keep_a_block_each() -> None:
    bench = Bench(num_blocks=9, chunk_tokens=100)
    first = bench.add([1] * 8, max_tokens=20)
    second = bench.add([2] * 8, max_tokens=20)
    third = bench.add([3] * 8, max_tokens=20)
    bench.scheduler.schedule()
    assert [r.slot for r in (first, second, third)] == [0, 1, 2], "9 - 3 * 2 blocks: one for each of two"
    assert bench.pool.num_free == 3
    bench.add([4], max_tokens=4)
    bench.scheduler.schedule()
    assert bench.requests[3].slot is None, "it would leave two for three"
    bench.finish()
    assert bench.scheduler.num_preemptions > 0, "21 blocks are more than 9"


def test_who_cannot_say_more_needs_no_block() -> None:
    bench = Bench(num_blocks=4, chunk_tokens=100)
    bench.add([1] * 4, max_tokens=4)
    step(bench.scheduler, bench.runner)
    step(bench.scheduler, bench.runner)  # has its second and last block
    bench.add([2] * 8, max_tokens=1)
    bench.scheduler.schedule()
    assert bench.requests[1].slot == 1
    bench.finish()


def test_a_share_of_many_blocks_stays_free() -> None:
    blocks = Blocks(1000, SIZE, 4)
    assert blocks.admit(request(0, [1] * 4), 8)
    assert not blocks.admit(request(1, [1] * SIZE * 990), SIZE * 990)
    assert blocks.admit(request(1, [1] * SIZE * (999 - int(1000 * WATERMARK))), SIZE * 990)


def test_who_came_last_gives_way_and_goes_on_with_the_same_words() -> None:
    bench = Bench(num_blocks=8, chunk_tokens=100)
    first, second = bench.add([1] * 8, max_tokens=20), bench.add([2] * 8, max_tokens=20)
    counts = {first.request_id: 0, second.request_id: 0}
    while not bench.scheduler.num_preemptions:
        _, events = step(bench.scheduler, bench.runner)
        for event in events:
            counts[event.request_id] += 1
    assert (first.slot, second.slot) == (0, None)
    said = second.output_ids[:]
    assert len(said) > 4
    waiting = bench.add([3] * 4, max_tokens=1)
    for event in bench.finish():
        counts[event.request_id] = counts.get(event.request_id, 0) + 1
    assert second.output_ids[: len(said)] == said
    assert counts == {0: 20, 1: 20, waiting.request_id: 1}
    again = [plan.chunks for plan in bench.runner.plans if any(chunk.slot == 0 for chunk in plan.chunks)]
    [chunk] = again[-1][:1]
    assert bench.scheduler.num_preemptions == 1
    assert [*chunk.tokens] == [*second.prompt_ids, *said][chunk.start :][: len(chunk.tokens)]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=2, max_size=8),
    num_blocks=st.integers(15, 20),
    num_slots=st.integers(2, 8),
)
def test_however_short_memory_is_everybody_gets_all_of_it(
    shapes: list[tuple[int, int]], num_blocks: int, num_slots: int
) -> None:
    bench = Bench(num_blocks=num_blocks, num_slots=num_slots)
    for length, max_tokens in shapes:
        bench.add([length] * length, max_tokens)
    events = bench.finish()
    assert len(events) == sum(len(asked.output_ids) for asked in bench.requests)
    ended = [event.request_id for event in events if event.finish_reason]
    assert sorted(ended) == list(range(len(shapes)))


@given(
    length=st.integers(1, 11),
    said=st.integers(1, 9),
    tokens=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    num_blocks=st.integers(15, 40),
)
def test_forks_share_all_blocks_and_part_at_the_first_word(
    length: int, said: int, tokens: list[int], num_blocks: int
) -> None:
    bench = Bench(num_blocks=num_blocks, chunk_tokens=100)
    parent = bench.add(list(range(10, 10 + length)), max_tokens=30)
    for _ in range(said):
        step(bench.scheduler, bench.runner)
    num_free = bench.pool.num_free
    children = [bench.fork(parent, token) for token in tokens]
    assert bench.pool.num_free == num_free
    begin = {child.request_id: child.output_ids[:] for child in children}
    plan = bench.scheduler.schedule()
    assert plan
    if not bench.scheduler.num_preemptions:
        is_partial = parent.num_computed % SIZE != 0
        assert len(plan.block_copies) == (len(children) if is_partial else 0), "the last one needs none"
    bench.finish()
    for child in children:
        first = begin[child.request_id]
        rest = SamplingParams(max_tokens=30 - len(first))
        whole, _ = bench.runner.expected([*child.prompt_ids, *first], rest, CONTEXT)
        assert child.output_ids == [*first, *whole]


def test_a_failed_copy_is_not_made_again() -> None:
    bench = Bench(chunk_tokens=100)
    parent = bench.add([1] * 6, max_tokens=10)
    step(bench.scheduler, bench.runner)
    bench.fork(parent, 5)
    plan = bench.scheduler.schedule()
    assert plan
    assert len(plan.block_copies) == 1
    assert len(bench.scheduler.fail(plan)) == 2
    bench.requests.clear()
    bench.add([2] * 6)
    plan, _ = step(bench.scheduler, bench.runner)
    assert plan.block_copies == ()
    bench.finish()


def test_a_fork_needs_a_slot_and_a_parent_that_decodes() -> None:
    bench = Bench(num_slots=1, chunk_tokens=2)
    parent = bench.add([1, 2, 3])
    step(bench.scheduler, bench.runner)
    child = request(9, [1, 2, 3])
    with pytest.raises(ValueError, match="bug: request 0 is forked before it decodes"):
        bench.blocks.fork(parent, child)
    step(bench.scheduler, bench.runner)
    assert not bench.blocks.fork(parent, child)
    assert child.slot is None


def test_tokens_that_a_request_computed_itself_were_not_cached() -> None:
    """Preempted in the middle of its prompt, it finds the blocks that it filled, and reports none of them."""
    scheduler, blocks = block_scheduler(9, SIZE, 2, CONTEXT, SIZE, ())
    runner = ScriptedPagedRunner(9, SIZE, hashed, blocks.pool.references)
    older, younger = request(0, [1] * SIZE, max_tokens=30), request(1, [2] * (5 * SIZE), max_tokens=1)
    scheduler.add(older)
    step(scheduler, runner)
    scheduler.add(younger)
    found: list[int] = []
    reported: list[int] = []
    while not younger.output_ids:
        if younger.num_computed == 4 * SIZE and not scheduler.num_preemptions:
            scheduler._preempt(younger)
        _, events = step(scheduler, runner)
        found.append(younger.num_cached)
        reported = [event.cached_tokens for event in events if event.request_id == 1]
    assert max(found) > 0, "it finds its own"
    assert reported == [0]
    assert scheduler.num_preemptions > 0


def test_blocks_of_wrong_guesses_are_given_back() -> None:
    prompt = [1, 2, 3, 4] * 4
    scheduler, blocks = block_scheduler(20, SIZE, 2, CONTEXT, 16, (), StepBudget(16, 15))
    runner = ScriptedPagedRunner(
        20, SIZE, lambda history: 1 if len(history) == 16 else 40 + len(history), blocks.pool.references
    )
    asked = request(0, prompt, max_tokens=30)
    scheduler.add(asked)
    step(scheduler, runner)
    num_free = blocks.pool.num_free
    plan, _ = step(scheduler, runner)
    assert plan.chunk
    assert plan.chunk.num_guesses == 4
    assert blocks.pool.num_free == num_free - 1, "position 16 has a block, position 20 has none"
    assert [token_id for _, token_id, *_ in finish(scheduler, runner)] == asked.output_ids[2:]
    assert asked.output_ids == runner.expected(prompt, asked.params, CONTEXT)[0]


@pytest.mark.parametrize("max_chunk_tokens", [None, 4, 9])
@pytest.mark.parametrize(
    ("num_slots", "chunk_tokens", "num_blocks"),
    [(4, 16, 40), (1, 10, 40), (8, 40, 10), (3, 59, 15), (20, 1, 40)],
)
def test_what_warming_up_leaves_is_in_nobody_s_books(
    num_slots: int, chunk_tokens: int, num_blocks: int, max_chunk_tokens: int | None
) -> None:
    bench = Bench(num_blocks=num_blocks, num_slots=num_slots, chunk_tokens=chunk_tokens)
    bench.runner = runner = WarmRunner(num_blocks, SIZE)
    budget = warm_up(runner, num_slots, chunk_tokens, block_size=SIZE, max_chunk_tokens=max_chunk_tokens)
    longest = max_chunk_tokens or chunk_tokens
    assert runner.longest_chunk == min(longest, chunk_tokens)
    assert runner.most_rows == num_slots
    assert runner.most_prefilled == min(chunk_tokens, longest * num_slots)
    assert budget.mixed_tokens >= 1
    assert bench.serve([0] * 16) == 0


@pytest.mark.parametrize(("context_tokens", "starts"), [(LONG_CONTEXT, {1}), (600, {1, LONG_CONTEXT})])
@pytest.mark.parametrize("chunk_tokens", [100, 599])
def test_every_size_of_step_is_warmed_up_with_every_kernel(
    context_tokens: int, starts: set[int], chunk_tokens: int
) -> None:
    """So that no request waits for a recording."""
    runner = WarmRunner(600 // SIZE, SIZE)
    warm_up(runner, 13, chunk_tokens, block_size=SIZE, context_tokens=context_tokens)
    sizes = {1, 2, 3, 4, 6, 8, 12, 13}
    assert runner.decoded >= {(size, start) for size in sizes for start in starts}
    assert {start for _, start in runner.decoded} == starts


@pytest.mark.parametrize("kind", ["slots", "blocks"])
def test_everybody_gets_on_in_every_step(kind: str) -> None:
    """Whatever comes, a decoding request gets a token a step, and the oldest prompt a chunk a step."""
    scheduler, runner = slot_scheduler(4, CONTEXT, 8, ()), ScriptedRunner()
    if kind == "blocks":
        scheduler, blocks = block_scheduler(60, SIZE, 4, CONTEXT, 8)
        runner = ScriptedPagedRunner(60, SIZE, hashed, blocks.pool.references)
    asked = [request(index, [index + 1] * (1 if index % 2 else 25), 50) for index in range(12)]
    for each in asked:
        scheduler.add(each)
    ended: list[int] = []
    while len(ended) < len(asked):
        due = {each.request_id for each in asked if each.output_ids} - {*ended}
        prompts = [each for each in asked if each.is_prefilling and each.slot is not None]
        computed = [each.num_computed for each in prompts]
        _, events = step(scheduler, runner)
        assert {event.request_id for event in events} >= due, "a decoding request waits"
        assert not prompts or prompts[0].num_computed > computed[0], "the oldest prompt waits"
        ended += [event.request_id for event in events if event.finish_reason]
    assert scheduler.num_preemptions == 0


def test_a_request_that_never_fits_is_a_bug() -> None:
    bench = Bench(num_blocks=3)
    with pytest.raises(ValueError, match="bug: a request of 13 tokens was admitted to a cache of 12"):
        bench.add([1] * 11, max_tokens=2)


def test_a_lost_block_and_a_lost_slot_are_seen() -> None:
    bench = Bench(chunk_tokens=100)
    asked = bench.add(SYSTEM, max_tokens=30)
    step(bench.scheduler, bench.runner)
    table = bench.blocks.table(asked)
    block = table.blocks.pop()
    with pytest.raises(AssertionError, match=f"0 tables have block {block}, which counts otherwise"):
        bench.scheduler.check_integrity()
    table.blocks.append(block)
    table.tail.append(7)
    with pytest.raises(AssertionError, match="bug: the table of request 0"):
        bench.scheduler.check_integrity()
    table.tail.pop()
    asked.slot = 5
    with pytest.raises(AssertionError, match="bug: slots"):
        bench.scheduler.check_integrity()
