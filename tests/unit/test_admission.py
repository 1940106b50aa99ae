"""The admission bound, by a clock that the test moves."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.errors import QueueFull
from llm_grpc.text.admission import Admission


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def hold(admission: Admission, clock: Clock, seconds: float) -> None:
    with admission.permit():
        clock.now += seconds


def refusal(admission: Admission) -> QueueFull:
    """The error of one request more than the bound allows."""
    with ExitStack() as held:
        for _ in range(1000):
            try:
                held.enter_context(admission.permit())
            except QueueFull as error:
                return error
    raise AssertionError("nothing was refused")


@given(
    max_running=st.integers(1, 5),
    max_waiting=st.integers(0, 5),
    arrivals=st.lists(st.booleans() | st.integers(0, 10), max_size=60),
)
def test_never_more_permits_than_the_bound(max_running: int, max_waiting: int, arrivals: list[int]) -> None:
    """An arrival is True, or the place of the permit that is given back."""
    admission = Admission(max_running, max_waiting)
    held: list[ExitStack] = []
    for arrival in arrivals:
        if arrival is True:
            stack = ExitStack()
            if len(held) < max_running + max_waiting:
                stack.enter_context(admission.permit())
                held.append(stack)
            else:
                with pytest.raises(QueueFull):
                    stack.enter_context(admission.permit())
        elif held:
            held.pop(arrival % len(held)).close()
        assert admission.held == len(held)


def test_a_permit_comes_back_when_its_request_fails() -> None:
    admission = Admission(1, 0)

    def fail() -> None:
        with admission.permit():
            assert admission.held == 1
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert admission.held == 0


def test_a_refusal_names_the_limit_and_takes_no_permit() -> None:
    admission = Admission(2, 1)
    error = refusal(admission)
    assert "3 requests run or wait, and the limit is 3" in str(error)
    assert admission.held == 0


def test_the_retry_delay_is_the_mean_request_s_share_of_its_slots() -> None:
    clock = Clock()
    admission = Admission(4, 0, clock)
    assert refusal(admission).retry_after_s == 0.25
    admission = Admission(4, 0, clock)
    for _ in range(200):
        hold(admission, clock, 8.0)
    assert refusal(admission).retry_after_s == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(("seconds", "retry_s"), [(0.0, 0.05), (1e6, 30.0)])
def test_the_retry_delay_stays_within_reason(seconds: float, retry_s: float) -> None:
    clock = Clock()
    admission = Admission(1, 0, clock)
    for _ in range(100):
        hold(admission, clock, seconds)
    assert refusal(admission).retry_after_s == retry_s
