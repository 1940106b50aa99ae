"""Guesses change how many steps a text takes, and nothing in the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.engine.guessing import num_wrong
from llm_grpc.engine.prompt_lookup import PromptLookup
from llm_grpc.engine.step_budget import TILE, StepBudget, measured_budget
from llm_grpc.engine.step_plan import PrefillChunk, StepPlan
from tests.unit.scheduling import EOS, finish, request, slot_scheduler, step
from tests.unit.scripted_runner import ScriptedRunner, hashed

CONTEXT = 64
Next = Callable[[Sequence[int]], int]

tokens = st.integers(1, 4)
"""Few, so that passages repeat."""


def periodic(history: Sequence[int]) -> int:
    return history[-3] if len(history) >= 3 else 5


def counting(history: Sequence[int]) -> int:
    return 100 + len(history)


@given(
    prompt=st.lists(tokens, min_size=1, max_size=20),
    max_tokens=st.integers(1, 60),
    num_guesses=st.integers(0, 15),
    script=st.sampled_from(
        [periodic, counting, lambda h: hashed(h) % 3, lambda h: EOS if len(h) > 30 else 7]
    ),
)
def test_a_text_is_the_same_with_guesses(
    prompt: list[int], max_tokens: int, num_guesses: int, script: Next
) -> None:
    runner = ScriptedRunner(script)
    scheduler = slot_scheduler(2, CONTEXT, 8, {EOS}, StepBudget(8, num_guesses))
    asked = request(0, prompt, max_tokens)
    scheduler.add(asked)
    events = finish(scheduler, runner)
    wanted, reason = runner.expected(prompt, asked.params, CONTEXT, {EOS})
    assert [event.token_id for event in events] == wanted
    assert [event.finish_reason for event in events] == [None] * (len(wanted) - 1) + [reason]


def test_what_repeats_takes_fewer_steps() -> None:
    def num_steps(num_guesses: int) -> int:
        runner, scheduler = (
            ScriptedRunner(periodic),
            slot_scheduler(1, 200, 16, (), StepBudget(16, num_guesses)),
        )
        scheduler.add(request(0, [1, 2, 3, 1, 2, 3], 100))
        finish(scheduler, runner)
        return len(runner.plans)

    assert num_steps(0) == 100
    assert num_steps(15) <= 12


def test_what_does_not_repeat_is_guessed_at_rarely() -> None:
    """Tokens come from a hash of all before them, so that what followed a passage tells nothing."""
    runner = ScriptedRunner(lambda history: 1 + hashed(history) % 2)
    scheduler = slot_scheduler(1, 2000, 16, (), StepBudget(16, 15))
    scheduler.add(request(0, [1, 2, 1, 2], 1000))
    finish(scheduler, runner)
    lookup = PromptLookup([])
    for _ in range(8):
        lookup.checked(4, 0)
    assert lookup._rest == 32
    assert len(runner.plans) < 1000


def test_only_a_lone_request_is_guessed_at() -> None:
    runner, scheduler = ScriptedRunner(periodic), slot_scheduler(2, 200, 16, (), StepBudget(16, 15))
    for request_id in (0, 1):
        scheduler.add(request(request_id, [1, 2, 3, 1, 2, 3], 20 * (request_id + 1)))
    plans: list[StepPlan] = []
    while scheduler.num_running != 1 or not plans:
        plans.append(step(scheduler, runner)[0])
    assert not any(plan.chunk and plan.chunk.num_guesses for plan in plans)
    assert step(scheduler, runner)[0].chunk


def test_planning_twice_changes_nothing() -> None:
    runner, scheduler = ScriptedRunner(periodic), slot_scheduler(1, 200, 16, (), StepBudget(16, 15))
    scheduler.add(request(0, [1, 2, 3, 1, 2, 3], 20))
    step(scheduler, runner)
    assert scheduler.schedule() == scheduler.schedule()


def test_a_failed_check_frees_the_slot() -> None:
    runner, scheduler = ScriptedRunner(periodic), slot_scheduler(1, 200, 16, (), StepBudget(16, 15))
    scheduler.add(request(0, [1, 2, 3, 1, 2, 3], 20))
    step(scheduler, runner)
    plan = scheduler.schedule()
    assert plan
    assert plan.chunk
    assert plan.chunk.num_guesses
    assert [event.request_id for event in scheduler.fail(plan)] == [0]
    scheduler.check_integrity()
    assert scheduler.num_running == 0


@pytest.mark.parametrize(
    ("chosen", "wrong"), [([7, 8, 9, 1], 0), ([7, 8, 1, 9], 1), ([1, 8, 9, 1], 3), ([7, 1, 9, 1], 2)]
)
def test_a_guess_after_a_wrong_one_is_wrong(chosen: list[int], wrong: int) -> None:
    assert num_wrong(PrefillChunk(0, 5, [6, 7, 8, 9], 3), chosen) == wrong


def test_a_prompt_has_no_guesses() -> None:
    assert num_wrong(PrefillChunk(0, 0, [6, 7, 8]), [1]) == 0


def test_the_last_place_counts_and_three_tokens_before_two() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3])
    assert lookup.guesses(2) == [4, 9], "1 2 3 was followed by 4, though 2 3 was last followed by 5"
    lookup.extend([6, 2, 3])
    assert lookup.guesses(1) == [6]


def test_a_guess_may_repeat_itself() -> None:
    lookup = PromptLookup([8, 8, 8, 8])
    lookup.checked(4, 4)
    assert lookup.guesses(15) == [8] * 8
    assert lookup.guesses(3) == [8] * 3


@given(st.lists(tokens), st.lists(tokens))
def test_a_sequence_may_come_in_parts(first: list[int], second: list[int]) -> None:
    whole, parts = PromptLookup(first + second), PromptLookup(first)
    parts.extend(second)
    assert parts.guesses(15) == whole.guesses(15)


@given(st.integers(1, 40), st.integers(1, 300))
def test_a_mixed_step_is_whole_tiles(num_decoding: int, mixed_tokens: int) -> None:
    found = StepBudget(mixed_tokens).beside(num_decoding)
    assert mixed_tokens / 2 <= found <= mixed_tokens
    assert found == mixed_tokens or (found + num_decoding) % TILE == 0
    assert mixed_tokens - found < TILE


def costs(fixed: float, per_row: float) -> Callable[[int, int], float]:
    return lambda rows, chunk: fixed + per_row * (rows + chunk)


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (costs(1.0, 0.0), StepBudget(256, 15)),
        (costs(1.0, 0.02), StepBudget(128, 11)),
        (costs(0.0, 1.0), StepBudget(32, 0)),
    ],
    ids=["reading the weights takes all the time", "some of it", "none of it"],
)
def test_the_budget_follows_what_steps_cost(seconds: Any, wanted: StepBudget) -> None:
    assert measured_budget(seconds, 16, 256) == wanted


def test_without_rows_no_mixed_step_is_tried() -> None:
    tried: list[int] = []

    def seconds(rows: int, chunk: int) -> float:
        tried.append(rows)
        return 1.0

    measured_budget(seconds, 0, 256)
    assert set(tried) == {0}
