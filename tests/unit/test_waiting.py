"""Who is next: higher priority first, and nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.config import EngineConfig
from llm_grpc.engine.request import Request
from llm_grpc.engine.waiting import AGEING_S as DEFAULT_AGEING_S
from llm_grpc.engine.waiting import Waiting
from tests.unit.scheduling import finish, request, slot_scheduler, step
from tests.unit.scripted_runner import ScriptedRunner

AGEING_S = 2.0


def waiting_of(*requests: Request) -> Waiting:
    waiting = Waiting(AGEING_S)
    for each in requests:
        waiting.add(each)
    return waiting


def drained(waiting: Waiting) -> list[int]:
    order = []
    while first := waiting.first:
        order.append(first.request_id)
        waiting.take()
    assert len(waiting) == 0
    return order


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        pytest.param([(0.0, 0), (0.0, 0), (0.0, 0)], [0, 1, 2], id="equals are first come, first served"),
        pytest.param([(0.0, 0), (1.0, 1), (1.5, 2)], [2, 1, 0], id="higher priority goes first"),
        pytest.param([(0.0, 0), (1.9, 1), (2.1, 1)], [1, 0, 2], id="but not before who has waited a level"),
        pytest.param([(0.0, -1), (1.9, 0), (2.1, 0)], [1, 0, 2], id="below the ordinary one too"),
    ],
)
def test_the_order_of_those_who_wait(arrivals: list[tuple[float, int]], order: list[int]) -> None:
    asked = [
        request(number, [1], priority=priority, arrived_s=arrived_s)
        for number, (arrived_s, priority) in enumerate(arrivals)
    ]
    assert drained(waiting_of(*asked)) == order


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-3, 3)), max_size=20), st.data())
def test_leaving_changes_nothing_for_the_others(arrivals: list[tuple[int, int]], data: st.DataObject) -> None:
    asked = [
        request(number, [1], priority=priority, arrived_s=float(arrived_s))
        for number, (arrived_s, priority) in enumerate(arrivals)
    ]
    whole = drained(waiting_of(*asked))
    waiting = waiting_of(*asked)
    gone = data.draw(st.sets(st.sampled_from(whole))) if whole else set()
    for number in gone:
        assert waiting.remove(number) is asked[number]
        assert waiting.remove(number) is None
    assert {each.request_id for each in waiting} == set(whole) - gone
    assert drained(waiting) == [number for number in whole if number not in gone]


def test_a_server_ages_as_an_engine_does_by_itself() -> None:
    assert EngineConfig().priority_ageing_s == DEFAULT_AGEING_S


def test_who_ran_already_comes_before_all_others() -> None:
    urgent, older, newer = request(1, [1], priority=9), request(2, [1]), request(3, [1])
    waiting = waiting_of(urgent)
    waiting.put_back(newer)
    waiting.put_back(older)
    assert [each.request_id for each in waiting] == [2, 3, 1]
    assert waiting.remove(3) is newer
    assert drained(waiting) == [2, 1]


def test_nobody_overtakes_who_waits_for_memory_unless_it_goes_first() -> None:
    """There is room for 20 tokens, and 12 of them are taken."""
    scheduler, runner = slot_scheduler(4, 20, 8, (), room=20), ScriptedRunner()
    running = request(1, [1] * 6, max_tokens=6)
    large = request(2, [2] * 6, max_tokens=6, arrived_s=1.0)
    small, urgent = request(3, [3], 2, arrived_s=2.0), request(4, [4], 2, priority=1, arrived_s=2.0)
    scheduler.add(running)
    step(scheduler, runner)
    for each in (large, small):
        scheduler.add(each)
    step(scheduler, runner)
    assert (large.slot, small.slot) == (None, None)
    scheduler.add(urgent)
    step(scheduler, runner)
    assert urgent.slot is not None
    assert (large.slot, small.slot) == (None, None)
    ended = [event.request_id for event in finish(scheduler, runner) if event.finish_reason]
    assert sorted(ended) == [1, 2, 3, 4]


def test_a_request_began_when_it_first_got_a_slot() -> None:
    now = iter(float(number) for number in range(1, 100))
    scheduler, runner = slot_scheduler(1, 20, 8, (), clock=lambda: next(now)), ScriptedRunner()
    for number in (1, 2):
        scheduler.add(request(number, [number], max_tokens=2))
    events = finish(scheduler, runner)
    assert [(event.request_id, event.begun_s) for event in events] == [(1, 1.0), (1, 0.0), (2, 2.0), (2, 0.0)]


def test_who_gives_way_began_when_it_did() -> None:
    now = iter(float(number) for number in range(1, 100))
    scheduler, runner = slot_scheduler(1, 20, 4, (), clock=lambda: next(now)), ScriptedRunner()
    asked = request(1, [1] * 6, max_tokens=1)
    scheduler.add(asked)
    step(scheduler, runner)
    scheduler._preempt(asked)
    [event] = finish(scheduler, runner)
    assert (event.begun_s, next(now)) == (1.0, 2.0)
