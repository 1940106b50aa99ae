"""The engine thread and the event loop: nothing leaks, nothing hangs, whoever leaves and whatever breaks."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

import pytest

from llm_grpc.engine.async_engine import AsyncEngine
from llm_grpc.engine.engine import Load
from llm_grpc.engine.request import FailedEvent, TokenEvent
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.slots import Slots
from llm_grpc.errors import EngineFailed
from llm_grpc.sampling_params import FinishReason, SamplingParams
from tests.unit.scripted_constraint import ScriptedConstraint
from tests.unit.scripted_runner import HANG_S, VOCAB, ScriptedRunner, scored

CONTEXT = 64

THREAD_BREAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class WatchedScheduler(Scheduler):
    """Remembers what was still there when the step loop ended."""

    left_over: Load | None = None

    def fail_all(self) -> list[FailedEvent]:
        self.check_integrity()
        self.left_over = Load(self.num_running, self.num_waiting, self.num_cached_tokens)
        return super().fail_all()


class WatchedLoop:
    """The event loop as the engine thread sees it: counts wake-ups, can hold the thread at its last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.num_wake_ups = 0
        self.hold_before_end = self.hold_after_end = False
        self.held = threading.Event()
        self.release = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        self.num_wake_ups += 1
        is_end = not args  # events are an argument; the end of the loop has none
        if is_end and self.hold_before_end:
            self._hold()
        self._loop.call_soon_threadsafe(callback, *args)
        if is_end and self.hold_after_end:
            self._hold()

    def _hold(self) -> None:
        self.held.set()
        self.release.wait(HANG_S)


class Bench:
    def __init__(self, num_slots: int, chunk_tokens: int, eos: Collection[int], *, gated: bool) -> None:
        self.runner = ScriptedRunner(gated=gated)
        self.scheduler = WatchedScheduler(
            Slots(num_slots, CONTEXT), CONTEXT, chunk_tokens, eos, vocabulary_size=VOCAB
        )
        self.loop = WatchedLoop(asyncio.get_running_loop())
        self.health: list[tuple[bool, bool]] = []
        self.health_changed = asyncio.Event()
        self.tasks: list[asyncio.Task[list[TokenEvent]]] = []
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.engine = AsyncEngine(self.scheduler, self.runner, loop, self._on_health)

    def _on_health(self) -> None:
        self.health.append((self.engine.is_healthy, self.engine.is_alive))
        self.health_changed.set()

    def start(self, prompt: list[int], max_tokens: int = 20) -> asyncio.Task[list[TokenEvent]]:
        batches = self.engine.generate(prompt, SamplingParams(max_tokens))
        self.tasks.append(asyncio.create_task(collect(batches)))
        return self.tasks[-1]


@asynccontextmanager
async def bench_of(
    num_slots: int = 2,
    chunk_tokens: int = 4,
    eos: Collection[int] = (),
    *,
    gated: bool = False,
    breaks: bool = False,
) -> AsyncIterator[Bench]:
    async with asyncio.timeout(HANG_S):
        bench = Bench(num_slots, chunk_tokens, eos, gated=gated)
        bench.engine.start()
        try:
            yield bench
        finally:
            bench.runner.open()
            bench.loop.release.set()
            for task in bench.tasks:
                task.cancel()
            await asyncio.gather(*bench.tasks, return_exceptions=True)
            await bench.engine.stop()
        bench.scheduler.check_integrity()
        assert breaks or bench.engine.load == Load()


async def collect(
    batches: AsyncGenerator[list[TokenEvent], None], into: list[TokenEvent] | None = None
) -> list[TokenEvent]:
    events = [] if into is None else into
    async with aclosing(batches):
        async for batch in batches:
            events += batch
    return events


async def read_one_token(
    bench: Bench, max_tokens: int
) -> tuple[AsyncGenerator[list[TokenEvent], None], list[TokenEvent]]:
    """Start a request on a gated bench, and leave it after its first token, before the second run."""
    batches = bench.engine.generate([5], SamplingParams(max_tokens))
    first = asyncio.ensure_future(anext(batches))
    await bench.runner.at_run()
    await bench.runner.next_run()
    assert len(await first) == 1
    return batches, await first


async def cancel(task: asyncio.Task[list[TokenEvent]]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def said(events: list[TokenEvent]) -> tuple[list[int], FinishReason | None]:
    assert not any(event.finish_reason for event in events[:-1])
    return [event.token_id for event in events], events[-1].finish_reason


async def test_many_requests_at_once_get_what_each_gets_alone() -> None:
    pick = random.Random(1)
    async with bench_of(num_slots=3, eos={7}) as bench:
        asked = [
            ([pick.randrange(1, 50) for _ in range(pick.randint(1, 20))], pick.randint(1, 60))
            for _ in range(40)
        ]
        tasks = [bench.start(prompt, max_tokens) for prompt, max_tokens in asked]
        reasons = set()
        for (prompt, max_tokens), task in zip(asked, tasks, strict=True):
            expected = bench.runner.expected(prompt, SamplingParams(max_tokens), CONTEXT, {7})
            assert said(await task) == expected
            reasons.add(expected[1])
    assert reasons == {FinishReason.EOS, FinishReason.LENGTH, FinishReason.CONTEXT_LIMIT}
    assert bench.scheduler.left_over == Load()


@pytest.mark.parametrize("seed", range(5))
async def test_random_leavers_leave_nothing_behind(seed: int) -> None:
    pick = random.Random(seed)

    async def client(bench: Bench) -> None:
        prompt = [pick.randrange(1, 50) for _ in range(pick.randint(1, 30))]
        params = SamplingParams(pick.randint(1, 30))
        expected = bench.runner.expected(prompt, params, CONTEXT)
        events: list[TokenEvent] = []
        leaves_after = pick.randint(0, 20)
        async with aclosing(bench.engine.generate(prompt, params)) as batches:
            async for batch in batches:
                events += batch
                if len(events) >= leaves_after:
                    break
            else:
                assert said(events) == expected
        assert [event.token_id for event in events] == expected[0][: len(events)]

    async with bench_of(num_slots=4) as bench:
        tasks = [asyncio.create_task(client(bench)) for _ in range(60)]
        for task in tasks[::3]:  # these are cancelled wherever they are, the first before they begin
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        tail = bench.start([3], max_tokens=4)
        assert said(await tail) == bench.runner.expected([3], SamplingParams(4), CONTEXT)
    assert bench.scheduler.left_over == Load(), "an abort was lost"


async def test_cancelling_while_waiting_leaves_the_queue() -> None:
    async with bench_of(num_slots=1, gated=True) as bench:
        bench.start([5])
        await bench.runner.at_run()
        waiter = bench.start([6])
        await asyncio.sleep(0)  # the request goes to the inbox
        await bench.runner.next_run()
        assert bench.scheduler.num_waiting == 1
        await cancel(waiter)
        await bench.runner.next_run()
        assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (1, 0)


async def test_cancelling_while_prefilling_frees_the_slot_within_one_step() -> None:
    async with bench_of(num_slots=2, chunk_tokens=2, gated=True) as bench:
        bench.start([5])
        await bench.runner.at_run()
        leaver = bench.start([6] * 20)
        heir = bench.start([7])
        await asyncio.sleep(0)
        await bench.runner.next_run()
        plan = await bench.runner.next_run()
        assert plan.chunk
        assert (plan.chunk.slot, plan.chunk.start) == (1, 2), "in the middle of the prompt"
        await cancel(leaver)
        plan = await bench.runner.next_run()
        assert plan.chunk
        assert (plan.chunk.slot, plan.chunk.start, list(plan.chunk.tokens)) == (1, 0, [7])
        bench.runner.open()
        assert len(await heir) == 20


async def test_cancelling_while_decoding_frees_the_slot_within_one_step() -> None:
    async with bench_of(num_slots=2, gated=True) as bench:
        leaver, other = bench.start([5]), bench.start([6])
        await bench.runner.at_run()
        await bench.runner.next_run()
        plan = await bench.runner.next_run()
        assert [row.slot for row in plan.decode] == [0, 1]
        await cancel(leaver)
        plan = await bench.runner.next_run()
        assert [row.slot for row in plan.decode] == [1]
        bench.runner.open()
        assert said(await other) == bench.runner.expected([6], SamplingParams(20), CONTEXT)


async def test_cancelling_before_the_engine_looked_costs_no_step() -> None:
    async with bench_of(num_slots=2, gated=True) as bench:
        bench.start([5])
        await bench.runner.at_run()
        leaver = bench.start([6])
        await asyncio.sleep(0)
        await cancel(leaver)
        plan = await bench.runner.next_run()
        assert plan.chunk is None
        assert [row.slot for row in plan.decode] == [0]


async def test_a_step_wakes_the_loop_once_however_many_requests_it_has() -> None:
    async with bench_of(num_slots=4, chunk_tokens=8, gated=True) as bench:
        tasks = [bench.start([i], max_tokens=6) for i in range(1, 5)]
        await asyncio.sleep(0)
        bench.runner.open()
        await asyncio.gather(*tasks)
        steps_with_events = sum(bool(plan.samples) for plan in bench.runner.plans)
        assert bench.loop.num_wake_ups == steps_with_events < 4 * 6


async def test_tokens_that_come_while_nobody_reads_are_kept_in_order() -> None:
    async with bench_of(num_slots=2, gated=True) as bench:
        batches, first = await read_one_token(bench, max_tokens=10)
        bench.runner.open()
        assert len(await bench.start([6], max_tokens=30)) == 30  # the reader of `batches` was away
        rest = await anext(batches)
        expected = bench.runner.expected([5], SamplingParams(10), CONTEXT)
        assert said(first + rest) == expected
        with pytest.raises(StopAsyncIteration):
            await anext(batches)


async def test_a_failed_run_fails_its_requests_and_two_change_health_until_a_good_one() -> None:
    async with bench_of() as bench:
        fault = RuntimeError("secret path /models/x")
        bench.runner.faults = [fault, fault]
        for _ in range(2):
            with pytest.raises(EngineFailed) as caught:
                await bench.start([5])
            assert "secret" not in str(caught.value)
        assert bench.health == [(False, True)]
        assert len(await bench.start([5])) == 20
        assert bench.health == [(False, True), (True, True)]
        assert bench.engine.is_healthy


async def test_tokens_before_a_failure_are_delivered_before_it() -> None:
    async with bench_of(gated=True) as bench:
        bench.runner.faults = [None, None, RuntimeError("broken")]
        batches, events = await read_one_token(bench, max_tokens=9)
        bench.runner.open()
        with pytest.raises(EngineFailed):
            await collect(batches, events)
        assert [e.token_id for e in events] == bench.runner.expected([5], SamplingParams(2), CONTEXT)[0]


@THREAD_BREAKS
async def test_the_death_of_the_thread_fails_everybody() -> None:
    async with bench_of(num_slots=2, gated=True) as bench:
        tasks = [bench.start([i]) for i in range(1, 6)]
        await bench.runner.at_run()
        await bench.runner.next_run()
        bench.runner.faults = [SystemExit(1)]
        late = bench.start([9])  # in the inbox when the thread dies
        await asyncio.sleep(0)
        bench.runner.let_pass()
        for outcome in await asyncio.gather(*tasks, late, return_exceptions=True):
            assert isinstance(outcome, EngineFailed)
        await bench.health_changed.wait()
        assert set(bench.health) == {(False, False)}
        with pytest.raises(EngineFailed, match="not running"):
            await bench.start([5])
        assert bench.scheduler.left_over == Load(num_running=2, num_waiting=4, num_cached_tokens=1)


@THREAD_BREAKS
async def test_the_engine_is_dead_from_the_moment_it_says_so() -> None:
    async with bench_of() as bench:
        bench.loop.hold_after_end = True  # the thread lives on for a while after its last word
        bench.runner.faults = [SystemExit(1)]
        with pytest.raises(EngineFailed):
            await bench.start([5])
        await bench.health_changed.wait()
        assert set(bench.health) == {(False, False)}
        with pytest.raises(EngineFailed, match="not running"):
            await bench.start([5])
        assert not bench.loop.release.is_set()


async def test_a_request_behind_the_thread_s_last_look_at_its_inbox_fails() -> None:
    async with bench_of() as bench:
        bench.loop.hold_before_end = True
        stopping = asyncio.create_task(bench.engine.stop())
        assert await asyncio.to_thread(bench.loop.held.wait, HANG_S)
        assert bench.engine.is_alive
        late = bench.start([5])
        await asyncio.sleep(0)
        bench.loop.release.set()
        with pytest.raises(EngineFailed):
            await late
        await stopping


@THREAD_BREAKS
async def test_the_loop_breaking_on_its_own_requests_still_fails_them() -> None:
    async with bench_of(gated=True, breaks=True) as bench:
        task = bench.start([5])
        await bench.runner.at_run()
        # This one cannot be added, neither in a step nor when the inbox is emptied at the end.
        bugs = [bench.start([5] * CONTEXT), bench.start([5] * CONTEXT)]
        await asyncio.sleep(0)
        bench.runner.open()
        for outcome in await asyncio.gather(task, *bugs, return_exceptions=True):
            assert isinstance(outcome, EngineFailed)
        await bench.health_changed.wait()
        assert set(bench.health) == {(False, False)}


async def test_stopping_fails_those_who_run_and_keeps_what_has_ended() -> None:
    async with bench_of(gated=True) as bench:
        long, short = bench.start([5], 40), bench.start([6], 1)
        await bench.runner.at_run()
        await bench.runner.next_run()  # `long` has a token; this step gives `short` its only one
        stopping = asyncio.create_task(bench.engine.stop())
        await asyncio.sleep(0)
        bench.runner.open()
        assert said(await short) == bench.runner.expected([6], SamplingParams(1), CONTEXT)
        with pytest.raises(EngineFailed):
            await long
        await stopping
        assert not bench.engine.is_alive


async def test_a_finished_request_that_nobody_has_read_survives_the_end_of_the_engine() -> None:
    async with bench_of(gated=True) as bench:
        batches, events = await read_one_token(bench, max_tokens=10)
        bench.runner.open()
        await bench.start([6], max_tokens=30)
        await bench.engine.stop()
        events += await collect(batches)
        assert said(events) == bench.runner.expected([5], SamplingParams(10), CONTEXT)


async def test_an_engine_that_never_started_refuses() -> None:
    bench = Bench(1, 4, (), gated=False)
    assert not bench.engine.is_healthy
    with pytest.raises(EngineFailed, match="not running"):
        await bench.start([5])


async def test_an_engine_that_never_started_stops() -> None:
    bench = Bench(1, 4, (), gated=False)
    async with asyncio.timeout(HANG_S):
        await bench.engine.stop()
        await bench.engine.stop()
    bench.engine.start()
    with pytest.raises(EngineFailed, match="not running"):
        await bench.start([5])


async def test_what_is_asked_of_the_engine_reaches_it() -> None:
    async with bench_of(num_slots=1, gated=True) as bench:
        constraint = ScriptedConstraint(length=3)
        first = bench.start([5], max_tokens=1)
        await bench.runner.at_run()
        ordinary = bench.start([6], max_tokens=1)
        await asyncio.sleep(0)
        params = SamplingParams(9, num_logprobs=1)
        urgent = asyncio.create_task(
            collect(
                bench.engine.generate(
                    [7, 8, 9],
                    params,
                    constraint=constraint,
                    group=bench.engine.new_group(),
                    first_score=1,
                    priority=5,
                )
            )
        )
        await asyncio.sleep(0)
        plan = await bench.runner.next_run()
        assert plan.chunk
        assert list(plan.chunk.tokens) == [7, 8, 9], "who has the higher priority goes first"
        bench.runner.open()
        events = await urgent
        await asyncio.gather(first, ordinary)
        assert events[0].prompt_scores == (scored([7], 8), scored([7, 8], 9))
        assert events[0].begun_s > 0
        assert [event.token_id for event in events] == constraint.said
        assert events[-1].finish_reason is FinishReason.STOP
        assert all(event.score and len(event.score.top) == 1 for event in events)


async def test_groups_are_never_the_same() -> None:
    async with bench_of() as bench:
        assert len({0, *(bench.engine.new_group() for _ in range(9))}) == 10


async def test_a_constraint_that_fails_takes_its_request_alone() -> None:
    async with bench_of(num_slots=2) as bench:
        other = bench.start([5])
        failing = bench.engine.generate([6], SamplingParams(9), constraint=ScriptedConstraint(9, 2, "wait"))
        events: list[TokenEvent] = []
        with pytest.raises(EngineFailed):
            await collect(failing, events)
        assert len(events) == 2
        assert said(await other) == bench.runner.expected([5], SamplingParams(20), CONTEXT)
        assert bench.engine.is_healthy
