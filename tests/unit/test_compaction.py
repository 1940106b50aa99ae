"""Decoding requests move together, and a request in a high slot costs one row."""

from __future__ import annotations

import pytest

from llm_grpc.engine.compaction import MIN_TOKENS_LEFT, best_move
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, SlotCopy, StepPlan
from llm_grpc.runtime.first_tokens import FirstTokens
from tests.unit.scheduling import finish, request, slot_scheduler, step
from tests.unit.scripted_runner import ScriptedRunner


def move(
    decoding: list[int], free: dict[int, int], may_move: set[int] | None = None
) -> tuple[int, int] | None:
    """``free`` says when each free slot was used last; -1 is an empty one."""
    return best_move(decoding, free, lambda s: may_move is None or s in may_move, free.__getitem__)


@pytest.mark.parametrize(
    ("decoding", "free", "expected"),
    [
        ([], {0: -1}, None),
        ([5], {0: -1, 9: -1}, None),
        ([3, 4, 5], {0: -1, 9: -1}, None),
        ([0, 2], {3: -1}, None),
        ([0, 2, 9], {1: -1}, (9, 1)),
        ([0, 8, 9], {7: -1, 5: -1}, (0, 7)),
        ([0, 8, 9], {5: 3, 7: 1}, (0, 7)),
        ([0, 8, 9], {5: -1, 7: 1}, (0, 5)),
        ([0, 4, 9], {1: 2, 2: 1, 3: 3}, (9, 2)),
    ],
)
def test_the_best_move(decoding: list[int], free: dict[int, int], expected: tuple[int, int] | None) -> None:
    """Into an empty slot; so that fewest rows are left; into the one used longest ago."""
    assert move(decoding, free) == expected


def test_who_is_almost_done_stays() -> None:
    assert move([0, 2, 9], {1: -1, 5: -1}, {0}) in {(0, 1), (0, 5)}
    assert move([0, 2, 9], {1: -1}, {2}) is None


class Bench:
    """Four requests that decode in the slots 0 to 3."""

    def __init__(self, max_tokens: int = 40) -> None:
        self.runner = ScriptedRunner()
        self.scheduler = slot_scheduler(5, 100, 16, ())
        for request_id in range(4):
            self.scheduler.add(request(request_id, [50 + request_id, 1, 2], max_tokens))
        for _ in range(4):
            self.step()

    def step(self) -> StepPlan:
        return step(self.scheduler, self.runner)[0]


def slots(plan: StepPlan) -> list[int]:
    return sorted(row.slot for row in plan.decode)


def test_one_request_a_step_moves_into_the_holes_and_goes_on_as_if_it_had_not() -> None:
    bench = Bench()
    bench.scheduler.abort(1)
    bench.scheduler.abort(2)
    plan = bench.step()
    assert plan.copies == (SlotCopy(3, 1, 3),)
    assert slots(plan) == [0, 1]
    assert bench.step().copies == ()
    events = finish(bench.scheduler, bench.runner)
    for request_id in (0, 3):
        said = [event.token_id for event in events if event.request_id == request_id]
        prompt = [50 + request_id, 1, 2]
        expected, _ = bench.runner.expected(prompt, request(9, prompt, 40).params, 100)
        assert said == expected[-len(said) :]


@pytest.mark.parametrize(("tokens_left", "moves"), [(MIN_TOKENS_LEFT, 1), (MIN_TOKENS_LEFT - 1, 0)])
def test_a_request_with_few_tokens_to_go_stays(tokens_left: int, moves: int) -> None:
    """The request in slot 3 began last: it has generated one token, and those before it more."""
    bench = Bench(max_tokens=tokens_left + 1)
    bench.scheduler.abort(1)
    bench.scheduler.abort(2)
    plans = [bench.step() for _ in range(2)]
    assert [len(plan.copies) for plan in plans] == [moves, 0]
    assert slots(plans[-1]) == ([0, 1] if moves else [0, 3])


def test_a_move_keeps_what_it_leaves_until_somebody_needs_the_slot() -> None:
    bench = Bench()
    bench.scheduler.abort(1)
    bench.scheduler.abort(2)
    [copy] = bench.step().copies
    bench.scheduler.add(request(8, [53, 1, 2, 9]))
    plan = bench.step()
    assert plan.chunk == PrefillChunk(copy.source, 3, [9]), "there it is, and no other slot is given up first"


def test_a_slot_that_was_left_is_given_up_before_any_other() -> None:
    bench = Bench()
    bench.scheduler.add(request(8, [60, 1, 2], 1))
    bench.step()  # no slot is empty any more
    bench.scheduler.abort(1)
    bench.scheduler.abort(2)
    [copy] = bench.step().copies
    bench.scheduler.add(request(9, [70, 1, 2]))
    plan = bench.step()
    assert plan.chunk == PrefillChunk(copy.source, 0, [70, 1, 2])


def test_planning_again_moves_nobody_else() -> None:
    runner, scheduler = ScriptedRunner(), slot_scheduler(7, 100, 16, ())
    for request_id in range(7):
        scheduler.add(request(request_id, [50 + request_id], 40))
    for _ in range(7):
        step(scheduler, runner)
    for request_id in (1, 2, 4, 5):
        scheduler.abort(request_id)
    plan = scheduler.schedule()
    assert plan
    assert len(plan.copies) == 1
    assert scheduler.schedule() == plan
    assert [len(step(scheduler, runner)[0].copies) for _ in range(3)] == [1, 1, 0]


def test_rows_begin_at_the_lowest_decoding_slot() -> None:
    tokens = FirstTokens()
    rows = tokens.decode_rows(StepPlan((DecodeRow(15, 7, 30),), (), ()))
    assert rows == [DecodeRow(15, 7, 30)]


def test_a_hole_gets_the_first_token_of_what_its_slot_holds() -> None:
    tokens = FirstTokens()
    for slot in (1, 2, 3):
        tokens.decode_rows(StepPlan((), (PrefillChunk(slot, 0, [10 * slot, 5]),), ()))
    tokens.decode_rows(StepPlan((), (PrefillChunk(2, 2, [6]),), ()))
    ends = (DecodeRow(5, 7, 3), DecodeRow(1, 8, 2))
    rows = tokens.decode_rows(StepPlan(ends, (PrefillChunk(3, 0, [40]),), (), (SlotCopy(1, 4, 2),)))
    assert rows == [ends[1], DecodeRow(2, 20, 0), DecodeRow(3, 40, 0), DecodeRow(4, 10, 0), ends[0]]


def test_where_nothing_decodes_there_are_no_rows() -> None:
    assert FirstTokens().decode_rows(StepPlan((), (PrefillChunk(2, 0, [9, 8]),), ())) == []
