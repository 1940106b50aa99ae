"""The scheduler, one rule at a time. ``test_scheduler_model`` has them all at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.engine.request import Request
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, StepResult
from llm_grpc.sampling_params import FinishReason, SamplingParams
from tests.unit.scheduling import EOS, finish, request, slot_scheduler, step
from tests.unit.scripted_runner import ScriptedRunner


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
        scheduler = slot_scheduler(1, 64, size, ())
        scheduler.add(request(1, prompt, max_tokens))
        said.append([event.token_id for event in finish(scheduler, runner)])
        written.append(runner.cache[0])
        starts.append([plan.chunk.start for plan in runner.plans if plan.chunk])
    assert written[0] == written[1] == prompt + said[0][:-1]
    assert said[0] == said[1]
    assert starts == [list(range(0, len(prompt), chunk)), [0]]


def test_a_newcomer_starts_at_the_next_step_and_ends_without_waiting() -> None:
    scheduler, runner = slot_scheduler(2, 100, 4, ()), ScriptedRunner()
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
    scheduler, runner = slot_scheduler(2, 100, 3, ()), ScriptedRunner()
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
    scheduler, runner = slot_scheduler(2, 100, 8, ()), ScriptedRunner()
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
    scheduler = slot_scheduler(1, 8, 2, {EOS})
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
    runner, scheduler = ScriptedRunner(lambda history: EOS), slot_scheduler(1, 8, 2, {EOS})
    scheduler.add(Request(1, [5, 5, 5], SamplingParams(max_tokens, ignore_eos=True)))
    events = finish(scheduler, runner)
    assert [event.token_id for event in events] == [EOS] * count
    assert [event.finish_reason for event in events] == [None] * (count - 1) + [reason]


@pytest.mark.parametrize("prompt_tokens", [0, 8, 9])
def test_a_prompt_that_cannot_run_is_a_bug(prompt_tokens: int) -> None:
    scheduler = slot_scheduler(1, 8, 2, ())
    with pytest.raises(ValueError, match=f"bug: a prompt of {prompt_tokens} tokens"):
        scheduler.add(request(1, [5] * prompt_tokens))
    assert scheduler.schedule() is None


@pytest.mark.parametrize("tokens", [[], [1, 2]])
def test_a_run_answers_every_sample_once(tokens: list[int]) -> None:
    scheduler = slot_scheduler(1, 8, 2, ())
    scheduler.add(request(1, [5]))
    plan = scheduler.schedule()
    assert plan
    with pytest.raises(ValueError, match="zip"):
        scheduler.commit(plan, StepResult(tokens))


def test_planning_again_plans_the_same() -> None:
    scheduler, runner = slot_scheduler(2, 20, 2, ()), ScriptedRunner()
    scheduler.add(request(1, [1, 2, 3]))
    scheduler.add(request(2, [4, 5]))
    for _ in range(4):
        assert scheduler.schedule() == scheduler.schedule()
        step(scheduler, runner)


def test_integrity_check_sees_a_lost_slot_and_a_shared_one() -> None:
    scheduler = slot_scheduler(2, 8, 2, ())
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
