"""The admission bound, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack

import pytest
from hypothesis import given, settings
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


class Turns:
    """Parts of calls that wait for their turns, by name."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.in_turn: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, name: str, count: int = 1) -> None:
        self._ends[name] = asyncio.Event()

        async def hold() -> None:
            async with self.admission.turn(count):
                self.in_turn.append(name)
                await self._ends[name].wait()
            self.in_turn.remove(name)

        self._tasks[name] = asyncio.ensure_future(hold())
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await settle()

    async def leave(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await settle()


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_turns_come_in_order_and_leave_half_of_the_waiting_places() -> None:
    admission = Admission(2, 4)
    turns = Turns(admission)
    for name in "abcdef":
        await turns.ask(name)
    assert turns.in_turn == [*"abcd"]
    with admission.permit(), admission.permit():
        assert admission.held == 6
        with pytest.raises(QueueFull), admission.permit():
            pass
        await turns.end("b")
        assert turns.in_turn == [*"acd"], "those who cannot wait hold what is left"
    await settle()
    assert turns.in_turn == [*"acde"]
    await turns.leave("f")
    for name in "acde":
        await turns.end(name)
    assert admission.held == 0
    await admission.idle()


async def test_a_turn_comes_where_nobody_may_wait() -> None:
    turns = Turns(Admission(1, 0))
    for name in "abc":
        await turns.ask(name)
        assert turns.in_turn == ["a"]
    await turns.end("a")
    await turns.end("b")
    assert turns.in_turn == ["c"]
    await turns.end("c")


async def test_a_turn_of_several_permits_is_not_overtaken_and_comes_when_nobody_is_there() -> None:
    turns = Turns(Admission(2, 2))
    await turns.ask("a", 2)
    await turns.ask("b", 4)
    await turns.ask("c", 1)
    assert turns.in_turn == ["a"]
    await turns.end("a")
    assert (turns.in_turn, turns.admission.held) == (["b"], 4)
    await turns.end("b")
    assert turns.in_turn == ["c"]
    await turns.end("c")
    assert turns.admission.held == 0


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    turns = Turns(Admission(1, 1))
    await turns.ask("a", 2)
    await turns.ask("b", 2)
    await turns.ask("c", 1)
    await turns.leave("b")
    assert turns.in_turn == ["a"]
    await turns.end("a")
    assert turns.in_turn == ["c"]
    await turns.end("c")
    assert turns.admission.held == 0


async def test_a_turn_that_comes_to_who_leaves_in_the_same_moment_goes_to_the_next() -> None:
    turns = Turns(Admission(1, 0))
    for name in "abc":
        await turns.ask(name)
    turns._ends["a"].set()
    await asyncio.sleep(0)  # b's turn has come, and b does not know it yet
    await turns.leave("b")
    assert turns.in_turn == ["c"]
    await turns.end("c")
    assert turns.admission.held == 0


class Holders:
    """Tasks that hold permits, after waiting for them or not at all, until they are told to end."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.num_held = 0
        self._ends: dict[asyncio.Task[None], asyncio.Event] = {}

    async def _hold(self, end: asyncio.Event, count: int, waits: bool) -> None:
        async with AsyncExitStack() as stack:
            if waits:
                await stack.enter_async_context(self.admission.turn(count))
            else:
                stack.enter_context(self.admission.permit(count))
            self.num_held += count
            try:
                await end.wait()
            finally:
                self.num_held -= count

    def ask(self, count: int, waits: bool) -> None:
        end = asyncio.Event()
        self._ends[asyncio.ensure_future(self._hold(end, count, waits))] = end

    def end(self, number: int, leaves: bool) -> None:
        """End one of them; who leaves is cancelled, also in the moment in which it ends."""
        if self._ends:
            task = [*self._ends][number % len(self._ends)]
            self._ends[task].set()
            if leaves:
                task.cancel()

    async def end_all(self) -> None:
        for task in self._ends:
            task.cancel()
        await asyncio.gather(*self._ends, return_exceptions=True)


@settings(max_examples=80, deadline=None)
@given(
    max_running=st.integers(1, 3),
    max_waiting=st.integers(0, 4),
    ops=st.lists(
        st.tuples(st.sampled_from(["turn", "permit", "end", "leave"]), st.integers(0, 9)), max_size=40
    ),
)
def test_permits_are_never_lost(max_running: int, max_waiting: int, ops: list[tuple[str, int]]) -> None:
    async def run() -> None:
        admission, limit = Admission(max_running, max_waiting), max_running + max_waiting
        holders = Holders(admission)
        for op, number in ops:
            if op in {"turn", "permit"}:
                holders.ask(1 + number % limit, op == "turn")
            else:
                holders.end(number, op == "leave")
            await asyncio.sleep(0)
            assert admission.held <= limit
        await settle()
        assert admission.held == holders.num_held
        await holders.end_all()
        assert admission.held == 0
        assert not admission._turns
        await admission.idle()

    asyncio.run(run())
