"""The step loop's body, driven without a thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from llm_grpc.engine.engine import Abort, Engine, Load, Stop
from llm_grpc.engine.request import Event, FailedEvent, Request, TokenEvent
from llm_grpc.sampling_params import FinishReason, SamplingParams
from tests.unit.scheduling import slot_scheduler
from tests.unit.scripted_runner import HANG_S, BrokenPlan, ScriptedRunner

FAULT = RuntimeError("the session broke")


class Bench:
    """An engine whose events are kept, step by step."""

    def __init__(self, num_slots: int = 2, chunk_tokens: int = 4) -> None:
        self.runner = ScriptedRunner()
        self.scheduler = slot_scheduler(num_slots, 32, chunk_tokens, ())
        self.published: list[Event] = []
        self.engine = Engine(self.scheduler, self.runner, self.publish)

    def publish(self, events: Sequence[Event]) -> None:
        self.published += events

    def add(self, request_id: int, prompt: list[int], max_tokens: int = 20) -> None:
        self.engine.inbox.put(Request(request_id, prompt, SamplingParams(max_tokens)))

    def step(self) -> list[Event]:
        self.published = []
        self.engine.step()
        self.engine.check_integrity()
        return self.published


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_step_takes_the_inbox_and_says_how_busy_the_engine_is(bench: Bench) -> None:
    for request_id in (1, 2, 3):
        bench.add(request_id, [5, 6, 7, 8, 9])
    assert bench.engine.load == Load()
    assert bench.step() == []
    assert bench.engine.load == Load(num_running=2, num_waiting=1, num_cached_tokens=4)
    [event] = bench.step()
    assert isinstance(event, TokenEvent)
    assert event.token_id == bench.runner.expected([5, 6, 7, 8, 9], SamplingParams(1), 32)[0][0]
    assert bench.engine.load == Load(num_running=2, num_waiting=1, num_cached_tokens=5)


def test_an_idle_step_runs_nothing(bench: Bench) -> None:
    assert bench.engine.step() is False
    assert bench.runner.plans == []
    bench.add(1, [5], max_tokens=1)
    assert bench.engine.step() is True
    assert bench.engine.step() is False
    assert bench.engine.load == Load()


def test_an_abort_frees_its_slot_within_one_step_for_who_waits(bench: Bench) -> None:
    for request_id in (1, 2, 3):
        bench.add(request_id, [request_id])
    bench.step()
    bench.step()
    bench.engine.inbox.put(Abort(1))
    events = bench.step()
    assert [event.request_id for event in events] == [2, 3]
    assert bench.engine.load.num_waiting == 0
    assert bench.runner.cache[0] == [3]


def test_an_abort_behind_its_request_leaves_no_work(bench: Bench) -> None:
    bench.add(1, [5])
    bench.engine.inbox.put(Abort(1))
    assert bench.step() == []
    assert bench.engine.load == Load()


def test_an_abort_of_a_request_that_ended_touches_nobody(bench: Bench) -> None:
    bench.add(1, [5], max_tokens=1)
    bench.step()
    bench.add(2, [6])
    bench.engine.inbox.put(Abort(1))
    assert [event.request_id for event in bench.step()] == [2]


def test_a_failed_run_fails_the_requests_of_its_step_alone() -> None:
    bench = Bench(num_slots=3)
    for request_id in (1, 2, 3, 4):
        bench.add(request_id, [request_id, 5])
    bench.step()
    bench.runner.faults = [FAULT]
    assert bench.step() == [FailedEvent(1), FailedEvent(2)]
    assert bench.engine.load == Load(num_running=1, num_waiting=1)
    events = [*bench.step(), *bench.step()]
    assert {event.request_id for event in events} == {3, 4}
    assert not any(isinstance(event, FailedEvent) for event in events)
    assert bench.runner.cache[0] == [4, 5], "the lowest freed slot starts over at position 0"


@pytest.mark.parametrize(
    ("runs", "healthy"),
    [
        ("", True),
        ("F", True),
        ("FF", False),
        ("FFF", False),
        ("FFg", True),
        ("FgF", True),
        ("FgFF", False),
        ("FFgF", True),
    ],
)
def test_two_failed_runs_in_a_row_make_the_engine_unhealthy_until_a_good_one(
    runs: str, healthy: bool
) -> None:
    bench = Bench()
    bench.runner.faults = [FAULT if run == "F" else None for run in runs]
    for request_id, run in enumerate(runs):
        bench.add(request_id, [5], max_tokens=1)
        expected = FailedEvent if run == "F" else TokenEvent
        assert [type(event) for event in bench.step()] == [expected]
    assert bench.engine.is_healthy is healthy
    assert bench.engine.load == Load()


def test_the_cause_of_a_failed_run_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.add(1, [5, 6])
    bench.runner.faults = [FAULT]
    bench.step()
    [record] = caplog.records
    assert "a run of 2 tokens failed" in record.getMessage()
    assert record.exc_info
    assert record.exc_info[1] is FAULT


def test_a_broken_plan_is_not_taken_for_a_failed_run(bench: Bench) -> None:
    bench.add(1, [5])
    bench.step()
    bench.runner.cache[0] = []
    with pytest.raises(BrokenPlan, match="slot 0 holds 0 tokens, written at 1"):
        bench.engine.step()


def test_fail_all_ends_running_and_waiting_requests_and_those_in_the_inbox(bench: Bench) -> None:
    for request_id in (1, 2, 3):
        bench.add(request_id, [5])
    bench.step()
    bench.add(4, [5])
    bench.add(5, [5])
    bench.engine.inbox.put(Abort(5))
    bench.published = []
    bench.engine.fail_all()
    assert bench.published == [FailedEvent(i) for i in (1, 2, 3, 4)]
    assert bench.engine.load == Load()
    bench.engine.check_integrity()


def test_the_loop_works_sleeps_and_stops() -> None:
    published: list[Event] = []
    ended = threading.Event()

    def publish(events: Sequence[Event]) -> None:
        published.extend(events)
        if any(isinstance(e, TokenEvent) and e.finish_reason for e in events):
            ended.set()

    runner = ScriptedRunner()
    engine = Engine(slot_scheduler(1, 32, 4, ()), runner, publish)
    thread = threading.Thread(target=engine.run_until_stopped, daemon=True)
    thread.start()
    for request_id in (1, 2):  # the second wakes an idle loop, and so does Stop
        engine.inbox.put(Request(request_id, [5, 6], SamplingParams(3)))
        assert ended.wait(HANG_S)
        ended.clear()
    engine.inbox.put(Abort(1))
    engine.inbox.put(Stop())
    thread.join(HANG_S)
    assert not thread.is_alive()
    tokens = runner.expected([5, 6], SamplingParams(3), 32)[0]
    reasons = [None, None, FinishReason.LENGTH]
    each = list(zip(tokens, reasons, (0, 0, 0), strict=True))
    again = list(zip(tokens, reasons, (1, 0, 0), strict=True))
    assert published == [TokenEvent(1, *event) for event in each] + [TokenEvent(2, *event) for event in again]


def test_stop_is_seen_where_the_step_that_takes_it_has_nothing_to_compute(bench: Bench) -> None:
    bench.engine.inbox.put(Abort(1))
    bench.engine.inbox.put(Stop())
    thread = threading.Thread(target=bench.engine.run_until_stopped, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive()


def test_stop_does_not_wait_for_long_requests(bench: Bench) -> None:
    bench.add(1, [5])
    bench.engine.inbox.put(Stop())
    bench.engine.run_until_stopped()
    assert len(bench.runner.plans) <= 1
    bench.engine.fail_all()
    assert bench.published[-1] == FailedEvent(1)
