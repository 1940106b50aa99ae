"""Prompts that begin alike: what is found, where it goes, who may not have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.engine.common_prefix import common_prefix
from llm_grpc.engine.step_plan import PrefillChunk, SlotCopy
from llm_grpc.engine.warm_up import warm_up
from tests.unit.scheduling import finish, request, slot_scheduler, slot_table, step
from tests.unit.scripted_runner import ScriptedRunner

SYSTEM = list(range(100, 150))
"""What many prompts begin with."""


class Bench:
    """A scheduler over slots that are lists of tokens."""

    def __init__(self, num_slots: int = 4, chunk_tokens: int = 16) -> None:
        self.runner = ScriptedRunner()
        self.scheduler = slot_scheduler(num_slots, 200, chunk_tokens, ())
        self.num_requests = 0

    def add(self, prompt: list[int], max_tokens: int = 3, salt: str | None = "") -> None:
        self.num_requests += 1
        self.scheduler.add(request(self.num_requests, prompt, max_tokens, salt=salt))

    def serve(self, prompt: list[int], max_tokens: int = 3, salt: str | None = "") -> int:
        """Serve one request alone; return how many tokens of its prompt were found."""
        self.add(prompt, max_tokens, salt)
        return sum(event.cached_tokens for event in finish(self.scheduler, self.runner))

    @property
    def num_prefilled(self) -> int:
        return sum(len(plan.chunk.tokens) for plan in self.runner.plans if plan.chunk)

    @property
    def slots_used(self) -> list[int]:
        """The slot of every prompt's last chunk."""
        chunks = [plan.chunk for plan in self.runner.plans if plan.chunk and plan.samples]
        return [chunk.slot for chunk in chunks if len(chunk.tokens)]


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 40))
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    b = a[:shared] + b
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


def test_a_prompt_asked_again_computes_its_last_token_alone() -> None:
    bench = Bench()
    assert bench.serve(SYSTEM) == 0
    assert bench.serve(SYSTEM) == len(SYSTEM) - 1
    assert bench.num_prefilled == len(SYSTEM) + 1


def test_a_conversation_goes_on_in_its_slot_without_a_copy() -> None:
    bench = Bench()
    history, found = SYSTEM[:], []
    for _ in range(5):
        found.append(bench.serve(history, max_tokens=4))
        history = [*history, *bench.runner.cache[0][len(history) :], 1, 2, 3]
    assert found == [0, *(len(SYSTEM) + 3 + 6 * turn for turn in range(4))]
    assert slot_table(bench.scheduler).num_copies == 0
    assert {plan.chunk.slot for plan in bench.runner.plans if plan.chunk} == {0}


def test_a_branch_is_copied_to_an_empty_slot_and_leaves_the_trunk() -> None:
    bench = Bench()
    bench.serve([*SYSTEM, 1, 2], max_tokens=1)
    assert bench.serve([*SYSTEM, 3, 4]) == len(SYSTEM)
    plan = next(plan for plan in bench.runner.plans if plan.copies)
    assert plan.copies == (SlotCopy(0, 1, len(SYSTEM)),)
    assert plan.chunk == PrefillChunk(1, len(SYSTEM), [3, 4])
    assert bench.serve([*SYSTEM, 1, 2, 5]) == len(SYSTEM) + 2
    assert slot_table(bench.scheduler).num_copies == 1, "the trunk continues where it is"


def test_where_no_slot_is_empty_the_one_used_longest_ago_is_given_up() -> None:
    bench = Bench(num_slots=3)
    prompts = [[token] * 20 for token in (1, 2, 3)]
    for prompt in prompts:
        bench.serve(prompt, max_tokens=1)
    assert bench.serve([*prompts[0], 7], max_tokens=1) == 20  # 0 is fresh again
    bench.serve([4] * 20)  # takes the place of 1
    assert [bench.serve(prompt) for prompt in ([*prompts[0], 7, 8], [*prompts[2], 8])] == [21, 20]
    assert bench.serve([*prompts[1], 8]) == 0


def test_a_slot_that_is_copied_from_is_fresh() -> None:
    bench = Bench(num_slots=3)
    bench.serve([*SYSTEM, 1])
    bench.serve([2] * 20)
    bench.serve([*SYSTEM, 3])  # copies from slot 0 to slot 2
    bench.serve([4] * 20)  # gives up slot 1
    assert bench.serve([*SYSTEM, 1, 9]) == len(SYSTEM) + 1
    assert bench.serve([2] * 20) == 0


def test_the_only_slot_keeps_what_the_next_prompt_begins_with() -> None:
    bench = Bench(num_slots=1)
    bench.serve([*SYSTEM, 1, 2, 3])
    assert bench.serve([*SYSTEM, 4]) == len(SYSTEM)
    assert bench.serve([*SYSTEM, 1, 2, 3]) == len(SYSTEM)
    assert slot_table(bench.scheduler).num_copies == 0


@pytest.mark.parametrize("num_requests", [2, 4, 12])
def test_requests_that_come_together_compute_what_they_share_once(num_requests: int) -> None:
    bench = Bench(num_slots=4, chunk_tokens=16)
    for each in range(num_requests):
        bench.add([*SYSTEM, each])
    finish(bench.scheduler, bench.runner)
    assert bench.num_prefilled == len(SYSTEM) + num_requests
    assert slot_table(bench.scheduler).num_copies <= num_requests


def test_a_running_request_gives_what_it_has_computed() -> None:
    bench = Bench(chunk_tokens=16)
    bench.add([*SYSTEM, 1], max_tokens=30)
    for _ in range(3):
        step(bench.scheduler, bench.runner)
    bench.add([*SYSTEM, 2])
    plan, _ = step(bench.scheduler, bench.runner)
    assert plan.copies == (SlotCopy(0, 1, 48),)
    plan, _ = step(bench.scheduler, bench.runner)
    assert plan.copies == (SlotCopy(0, 1, 50),), "it looked again when it was its turn"
    assert plan.chunk == PrefillChunk(1, 50, [2])


def test_an_aborted_request_leaves_what_was_computed() -> None:
    bench = Bench(chunk_tokens=16)
    bench.add(SYSTEM)
    step(bench.scheduler, bench.runner)
    bench.scheduler.abort(1)
    assert bench.serve(SYSTEM) == 16


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("", "", 49),
        ("a", "a", 49),
        ("", "a", 0),
        ("a", "", 0),
        ("a", "b", 0),
        (None, "", 0),
        ("", None, 0),
        (None, None, 0),
    ],
)
def test_who_finds_what_whom_left(first: str | None, second: str | None, found: int) -> None:
    for num_slots in (1, 3):
        bench = Bench(num_slots)
        bench.serve(SYSTEM, salt=first)
        assert bench.serve(SYSTEM, salt=second) == found
        running = Bench(num_slots + 1)
        running.add(SYSTEM, max_tokens=30, salt=first)
        for _ in range(6):
            step(running.scheduler, running.runner)
        running.add(SYSTEM, salt=second)
        events = finish(running.scheduler, running.runner)
        assert sum(event.cached_tokens for event in events) == found


def test_a_stranger_s_slot_is_no_better_than_an_empty_one() -> None:
    bench = Bench(num_slots=2)
    bench.serve(SYSTEM, max_tokens=1, salt="a")
    bench.serve([*SYSTEM, 1, 2], max_tokens=1, salt="b")
    assert bench.serve(SYSTEM, salt="a") == len(SYSTEM) - 1
    assert bench.serve(SYSTEM, salt="b") == len(SYSTEM) - 1


def test_a_failed_run_leaves_nothing() -> None:
    bench = Bench(chunk_tokens=16)
    bench.serve([*SYSTEM, 1])
    bench.add([*SYSTEM, 2])
    bench.add([*SYSTEM, 3])
    plan = bench.scheduler.schedule()
    assert plan
    assert [copy.target for copy in plan.copies] == [1, 2]
    assert [event.request_id for event in bench.scheduler.fail(plan)] == [2]
    bench.scheduler.check_integrity()
    bench.runner.cache[1] = bench.runner.cache[2] = [-1]
    [event, *_] = finish(bench.scheduler, bench.runner)
    assert event.cached_tokens == len(SYSTEM), "from slot 0 again"


def test_what_warming_up_leaves_is_not_found() -> None:
    bench = Bench(num_slots=2, chunk_tokens=16)
    warm_up(bench.runner, 2, 16)
    assert bench.serve([0] * 16) == 0


def test_a_fair_share_for_prompts_beside_decoding_and_for_decoding_beside_prompts() -> None:
    """Whatever comes, a decoding request gets a token a step, and the oldest prompt a chunk a step."""
    bench = Bench(num_slots=4, chunk_tokens=8)
    bench.add([1], max_tokens=100)
    for each in range(40):
        bench.add([each] * 30 if each % 2 else [each], max_tokens=1 if each % 2 else 25)
    num_left, num_steps, last_index = 41, 0, -1
    while bench.scheduler.num_running + bench.scheduler.num_waiting:
        had_prompts = any(r.is_prefilling for r in bench.scheduler._running.values()) or num_steps == 0
        plan, events = step(bench.scheduler, bench.runner)
        num_steps += 1
        assert not had_prompts or plan.chunk, "a prompt waits beside decoding requests"
        for sample in plan.samples:
            if sample.request_id == 1:
                assert sample.index == last_index + 1
                last_index = sample.index
        assert last_index in {num_steps - 1, 99}, "the first request has a token a step"
        num_left -= sum(event.finish_reason is not None for event in events)
    assert num_left == 0
    num_chunks = sum(plan.chunk is not None for plan in bench.runner.plans)
    assert num_chunks == 1 + 20 + 20 * 4, "a prompt of 30 tokens is four chunks"
    assert num_steps <= num_chunks + 100
