"""What a request is told of its tokens, and what may not come: one rule of the scheduler at a time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.engine.request import FailedEvent, TokenEvent
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import MAX_SCORED_ROWS, StepPlan
from llm_grpc.sampling_params import FinishReason
from tests.unit.scheduling import EOS, block_scheduler, finish, request, slot_scheduler, step
from tests.unit.scripted_constraint import ScriptedConstraint
from tests.unit.scripted_paged_runner import ScriptedPagedRunner
from tests.unit.scripted_runner import VOCAB, ScriptedRunner, hashed, scored

LONG = [1 + at % 40 for at in range(200)]
WHERE = ["start", "wait", "advance", "is_complete"]


def served(script: Any, prompt: list[int], max_tokens: int = 9, **fields: Any) -> list[TokenEvent]:
    """One request alone, of which a step may check guesses."""
    scheduler = slot_scheduler(2, 64, 8, {EOS}, StepBudget(8, 7))
    scheduler.add(request(1, prompt, max_tokens, **fields))
    return finish(scheduler, ScriptedRunner(script))


def said(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]


@pytest.mark.parametrize(
    ("fields", "tokens", "reason"),
    [
        pytest.param({"stop_token_ids": (7,)}, [5, 6, 7], FinishReason.STOP, id="it is the last token"),
        pytest.param({"stop_token_ids": (EOS,)}, [5, 6, 7, EOS], FinishReason.EOS, id="the end token wins"),
        pytest.param(
            {"stop_token_ids": (EOS,), "ignore_eos": True},
            [5, 6, 7, EOS],
            FinishReason.STOP,
            id="but not ignored",
        ),
        pytest.param(
            {"stop_token_ids": (7,), "max_tokens": 3}, [5, 6, 7], FinishReason.STOP, id="and at the end"
        ),
        pytest.param(
            {"stop_token_ids": (6,), "min_tokens": 2},
            [5, 7, 8, 9],
            FinishReason.LENGTH,
            id="not before its time",
        ),
        pytest.param(
            {"min_tokens": 4, "max_tokens": 5}, [5, 6, 7, 1, 8], FinishReason.LENGTH, id="nor the end"
        ),
    ],
)
def test_what_ends_a_text(fields: dict[str, Any], tokens: list[int], reason: FinishReason) -> None:
    script = [5, 6, 7, EOS, 8, 9] if "min_tokens" not in fields or "max_tokens" in fields else [5, 6, 8, 9]
    events = served(lambda history: script[len(history) - 3], [1, 2, 3], **{"max_tokens": 4, **fields})
    assert said(events) == tokens
    assert events[-1].finish_reason is reason


def test_what_may_not_come_is_told_with_each_row_until_it_may() -> None:
    scheduler, runner = slot_scheduler(1, 64, 8, {EOS, 9}), ScriptedRunner()
    scheduler.add(request(1, [5], 4, min_tokens=2, stop_token_ids=(3, 9)))
    assert [step(scheduler, runner)[0].samples[0].banned for _ in range(4)] == [(0, 9, 3), (0, 9, 3), (), ()]


@settings(deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {"max_tokens": st.integers(1, 40)},
        optional={
            "min_tokens": st.integers(0, 30),
            "stop_token_ids": st.just((2,)),
            "num_logprobs": st.integers(0, 2),
            "presence_penalty": st.just(1.0),
            "repetition_penalty": st.just(1.1),
        },
    ),
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=20),
)
def test_guesses_change_nothing(fields: dict[str, Any], prompt: list[int]) -> None:
    answers = []
    for num_guesses in (0, 7):
        scheduler = slot_scheduler(1, 64, 8, {EOS}, StepBudget(8, num_guesses))
        scheduler.add(request(1, prompt, **fields))
        answers.append(finish(scheduler, ScriptedRunner(lambda history: hashed(history[-2:]) % 4)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("fields", "guesses"),
    [
        ({}, True),
        ({"num_logprobs": 0}, True),
        ({"min_tokens": 30}, True),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"constraint": ScriptedConstraint()}, False),
    ],
)
def test_nothing_is_guessed_where_more_than_logits_depends_on_what_was_said(
    fields: dict[str, Any], guesses: bool
) -> None:
    scheduler, runner = slot_scheduler(1, 200, 16, (), StepBudget(16, 7)), ScriptedRunner(lambda history: 5)
    scheduler.add(request(1, [5] * 6, 40, **fields))
    finish(scheduler, runner)
    assert any(plan.chunk and plan.chunk.num_guesses for plan in runner.plans) is guesses


def test_tokens_before_are_told_where_penalties_are_and_are_not_copied() -> None:
    scheduler, runner = slot_scheduler(2, 64, 8, ()), ScriptedRunner()
    plain, penalized = request(1, [5]), request(2, [6], frequency_penalty=0.5)
    for asked in (plain, penalized):
        scheduler.add(asked)
    step(scheduler, runner)
    step(scheduler, runner)
    plan, _ = step(scheduler, runner)
    first, second = plan.samples
    assert (first.prompt_ids, first.output_ids) == ((), ())
    assert second.prompt_ids is penalized.prompt_ids
    assert second.output_ids is penalized.output_ids


@pytest.mark.parametrize("num_top", [None, 0, 3])
def test_scores_of_chosen_tokens(num_top: int | None) -> None:
    events = served(hashed, [1, 2, 3], num_logprobs=num_top)
    for number, event in enumerate(events):
        history = [1, 2, 3, *said(events[:number])]
        assert event.score == (None if num_top is None else scored(history, event.token_id, num_top))


def scorers(chunk_tokens: int) -> list[tuple[Scheduler, ScriptedRunner]]:
    blocks, books = block_scheduler(200, 4, 8, 256, chunk_tokens)
    return [
        (slot_scheduler(8, 256, chunk_tokens, ()), ScriptedRunner()),
        (blocks, ScriptedPagedRunner(200, 4, references=books.pool.references)),
    ]


@pytest.mark.parametrize("first_score", [1, 2, 100, 199, 200, 300])
def test_a_step_tells_no_more_scores_than_it_has_rows_for(first_score: int) -> None:
    for scheduler, runner in scorers(128):
        asked = [
            request(number, [*LONG[:-1], number], 2, first_score=first_score, salt=None) for number in (1, 2)
        ]
        for each in asked:
            scheduler.add(each)
        events = {event.request_id: event for event in finish(scheduler, runner) if event.prompt_scores}
        most = max(len(plan.scores) for plan in runner.plans)
        assert most <= MAX_SCORED_ROWS
        assert most == MAX_SCORED_ROWS or first_score > 100
        for each in asked:
            prompt = list(each.prompt_ids)
            wanted = tuple(scored(prompt[:at], prompt[at]) for at in range(first_score, len(prompt)))
            assert bool(wanted) == (each.request_id in events)
            assert not wanted or events[each.request_id].prompt_scores == wanted


@pytest.mark.parametrize(("first_score", "found"), [(1, 0), (2, 1), (20, 19), (29, 28), (50, 29), (None, 29)])
def test_what_is_scored_is_computed_and_no_more(first_score: int | None, found: int) -> None:
    [(scheduler, runner), (paged, paged_runner)] = scorers(64)
    for books, computes, size in ((scheduler, runner, 1), (paged, paged_runner, 4)):
        books.add(request(1, LONG[:30], 1))
        finish(books, computes)
        books.add(request(2, LONG[:30], 1, first_score=first_score))
        [event] = finish(books, computes)
        assert event.cached_tokens == found // size * size
        books.add(request(3, LONG[:30], 1))
        [event] = finish(books, computes)
        assert event.cached_tokens == 29 // size * size, "it leaves what others leave"


def test_a_prompt_s_scores_are_asked_for_by_their_number_too() -> None:
    [event] = served(hashed, [4, 5, 6], 1, num_prompt_logprobs=2)
    assert event.prompt_scores == (scored([4], 5, 2), scored([4, 5], 6, 2))


def test_a_preempted_request_tells_each_score_once() -> None:
    scheduler, books = block_scheduler(12, 4, 3, 40, 5)
    runner = ScriptedPagedRunner(12, 4, references=books.pool.references)
    scheduler.add(request(1, LONG[:6], 30))
    step(scheduler, runner)
    step(scheduler, runner)
    asked = request(2, LONG[50:70], 2, first_score=1, salt=None)
    scheduler.add(asked)
    while asked.slot is None or len(asked.prompt_scores) < 6:
        step(scheduler, runner)
    scheduler._preempt(asked)
    scheduler.check_integrity()
    events = [event for event in finish(scheduler, runner) if event.request_id == 2]
    prompt = list(asked.prompt_ids)
    assert events[0].prompt_scores == tuple(scored(prompt[:at], prompt[at]) for at in range(1, 20))
    assert [event.prompt_scores for event in events[1:]] == [()]
    assert sum(score.request_id == 2 for plan in runner.plans for score in plan.scores) == 19


def test_a_mask_is_begun_with_the_plan_and_waited_for_by_the_run() -> None:
    scheduler, runner, constraint = slot_scheduler(1, 64, 8, ()), ScriptedRunner(), ScriptedConstraint()
    scheduler.add(request(1, list(range(1, 12)), constraint=constraint))
    step(scheduler, runner)
    assert constraint.num_starts == 0, "the prompt takes another step"
    for count in (1, 2, 3):
        plan = scheduler.schedule()
        assert plan
        assert scheduler.schedule() == plan, "planning again begins nothing"
        assert (constraint.num_starts, constraint.num_waits, len(constraint.said)) == (
            count,
            count - 1,
            count - 1,
        )
        scheduler.commit(plan, runner.run(plan))
        assert (constraint.num_starts, constraint.num_waits, len(constraint.said)) == (count, count, count)


@pytest.mark.parametrize("length", [1, 4])
def test_a_text_ends_where_it_has_its_form(length: int) -> None:
    constraint = ScriptedConstraint(length)
    events = served(hashed, [1, 2, 3], max_tokens=length, constraint=constraint)
    assert said(events) == constraint.said
    assert all(token % 2 == place % 2 for place, token in enumerate(said(events)))
    assert [event.finish_reason for event in events] == [None] * (length - 1) + [FinishReason.STOP]


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("where", WHERE)
def test_a_constraint_that_fails_ends_its_request_alone(where: str, place: int) -> None:
    scheduler, runner = slot_scheduler(2, 64, 8, ()), ScriptedRunner()
    scheduler.add(request(1, [5], 5))
    scheduler.add(request(2, [6], 9, constraint=ScriptedConstraint(9, place, where)))
    events = []
    while plan := scheduler.schedule():
        events += scheduler.commit(plan, runner.run(plan))
        scheduler.check_integrity()
    other = [event.token_id for event in events if isinstance(event, TokenEvent) and event.request_id == 1]
    assert other == runner.expected([5], request(1, [5], 5).params, 64)[0]
    mine = [event for event in events if event.request_id == 2]
    assert [isinstance(event, FailedEvent) for event in mine] == [False] * place + [True]


def test_a_preempted_text_goes_on_with_its_form() -> None:
    scheduler, books = block_scheduler(12, 4, 3, 40, 8)
    runner, constraint = ScriptedPagedRunner(12, 4, references=books.pool.references), ScriptedConstraint(12)
    asked = request(1, LONG[:6], 20, constraint=constraint)
    scheduler.add(asked)
    events = [event for _ in range(5) for event in step(scheduler, runner)[1]]
    scheduler.schedule()
    scheduler._preempt(asked)
    events += finish(scheduler, runner)
    assert said(events) == constraint.said == asked.output_ids
    assert len(constraint.said) == constraint.num_waits == 12
    assert events[-1].finish_reason is FinishReason.STOP


def test_a_mask_that_failed_allows_all_that_there_is() -> None:
    scheduler = slot_scheduler(1, 64, 8, ())
    scheduler.add(request(1, [5], constraint=ScriptedConstraint(9, 0, "start")))
    plan: StepPlan | None = scheduler.schedule()
    assert plan
    assert plan.samples[0].mask
    bits = plan.samples[0].mask.wait()
    assert (bits.itemsize, len(bits)) == (4, -(-VOCAB // 32))
    assert set(bits) == {0xFFFFFFFF}


def test_scores_that_just_fit_take_one_step() -> None:
    for scheduler, runner in scorers(128):
        scheduler.add(request(1, LONG[: MAX_SCORED_ROWS + 1], 1, first_score=1))
        finish(scheduler, runner)
        assert [len(plan.scores) for plan in runner.plans] == [MAX_SCORED_ROWS]


def test_who_has_no_scores_goes_on_where_others_fill_the_step() -> None:
    _, (scheduler, runner) = scorers(256)
    for number in (1, 2):
        scheduler.add(request(number, [number, *LONG[:99]], 1, first_score=1))
    plain = request(3, [3] * 9, 1)
    scheduler.add(plain)
    plan, events = step(scheduler, runner)
    assert [len(chunk.tokens) for chunk in plan.chunks] == [MAX_SCORED_ROWS, 9]
    assert [event.request_id for event in events] == [3]


def test_of_one_step_s_guesses_some_may_be_the_end_and_others_not() -> None:
    scheduler = slot_scheduler(1, 64, 16, {EOS}, StepBudget(16, 15))
    runner = ScriptedRunner(lambda history: EOS if len(history) >= 6 + 9 else 5)
    scheduler.add(request(1, [5] * 6, 20, min_tokens=9))
    assert said(finish(scheduler, runner)) == [5] * 9 + [EOS]
    for plan in runner.plans:
        assert [sample.banned for sample in plan.samples] == [
            (EOS,) if sample.index < 9 else () for sample in plan.samples
        ]
    assert any(len({sample.banned for sample in plan.samples}) == 2 for plan in runner.plans)
