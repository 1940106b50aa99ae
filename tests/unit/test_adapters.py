"""Adapters come and go while the engine runs: who may use them, for how long, and what their keys are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.engine.adapters import Adapter, Adapters, AdapterWeights, store_of
from llm_grpc.engine.async_engine import AsyncEngine
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import StepPlan
from llm_grpc.errors import (
    AdapterExists,
    AdapterNotFound,
    EngineFailed,
    ManifestError,
    UnsupportedParameter,
)
from llm_grpc.sampling_params import SamplingParams
from tests.unit.scheduling import finish, request, slot_scheduler
from tests.unit.scripted_runner import ScriptedRunner

CONTEXT = 64


@dataclass(frozen=True)
class Weights:
    rank: int
    digest: str = "sha256:0"


class Store:
    """Reads a directory named ``<rank>``; remembers which numbers steps may use, and which thread said so."""

    max_rank = 16

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.threads: set[str] = set()
        self.fault: Exception | None = None
        self.num_reading = self.most_reading = 0

    def read(self, directory: Path) -> Weights:
        self.num_reading += 1
        self.most_reading = max(self.most_reading, self.num_reading)
        try:
            if not directory.name.isdecimal():
                raise ManifestError(f"{directory} is no adapter")
            return Weights(int(directory.name))
        finally:
            self.num_reading -= 1

    def arranged(self, chosen: Mapping[int, AdapterWeights]) -> Callable[[], None]:
        numbers = sorted(chosen)

        def use() -> None:
            if self.fault:
                raise self.fault
            self.numbers = numbers
            self.threads.add(threading.current_thread().name)

        return use


def adapters_of(plan: StepPlan) -> set[int]:
    return {row.adapter for row in plan.decode} | {chunk.adapter for chunk in plan.chunks}


class Runner(ScriptedRunner):
    """Refuses a step with an adapter that is not there."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__(gated=gated)
        self.adapters = Store()

    def _write(self, plan: StepPlan) -> list[list[int]]:
        used = adapters_of(plan)
        assert used - {0} <= set(self.adapters.numbers), "a step was computed without its adapter"
        return super()._write(plan)


class Bench:
    def __init__(self, *, gated: bool) -> None:
        self.runner = Runner(gated=gated)
        self.store = self.runner.adapters
        self.engine = AsyncEngine(slot_scheduler(4, CONTEXT, 16, ()), self.runner, asyncio.get_running_loop())
        store = store_of(self.runner)
        assert store is self.store
        self.adapters = Adapters(store, self.engine.between_steps)

    async def ask(self, name: str, prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 4) -> int:
        """How many of the prompt's tokens were found in the cache."""
        found = 0
        params = SamplingParams(max_tokens)
        async with aclosing(self.engine.generate(prompt, params, adapter=self.adapters.get(name))) as batches:
            async for events in batches:
                found += sum(event.cached_tokens for event in events)
        return found


@asynccontextmanager
async def opened(*, gated: bool = False) -> AsyncIterator[Bench]:
    bench = Bench(gated=gated)
    bench.engine.start()
    yield bench
    bench.runner.open()
    await bench.engine.stop()
    bench.engine._engine.check_integrity()


async def settled(bench: Bench) -> None:
    while bench.adapters._tasks:
        await asyncio.gather(*bench.adapters._tasks)


async def test_what_is_loaded_is_known_by_name_until_it_is_unloaded() -> None:
    async with opened() as bench:
        adapters = bench.adapters
        await adapters.load("b", Path("8"))
        await adapters.load("a", Path("4"))
        assert [(a.name, a.weights.rank) for a in adapters.loaded] == [("a", 4), ("b", 8)]
        assert adapters.get("") is None
        with pytest.raises(AdapterNotFound, match="adapter: there is no 'c' here; the model has a, b"):
            adapters.get("c")
        with pytest.raises(AdapterExists, match="name: there is an adapter 'a' already"):
            await adapters.load("a", Path("1"))
        with pytest.raises(UnsupportedParameter, match="'c' has rank 5, and 4 of 16 are free"):
            await adapters.load("c", Path("5"))
        with pytest.raises(ManifestError):
            await adapters.load("c", Path("none"))
        adapters.unload("b")
        for wrong in ("b", "", "c"):
            with pytest.raises(AdapterNotFound, match="name: there is no adapter"):
                adapters.unload(wrong)
        await settled(bench)
        await adapters.load("c", Path("12"))
        assert bench.store.numbers == [2, 3]
        assert bench.store.threads == {"llm-grpc-engine"}


async def test_requests_that_use_it_run_to_their_end() -> None:
    async with opened(gated=True) as bench:
        old = await loading(bench, "x", "10")
        running = asyncio.ensure_future(bench.ask("x"))
        assert (await bench.runner.at_run()).chunks[0].adapter == old.number
        assert old.num_requests == 1
        bench.adapters.unload("x")
        with pytest.raises(AdapterNotFound):
            bench.adapters.get("x")
        bench.runner.gate()
        with pytest.raises(UnsupportedParameter, match="has rank 7, and 6 of 16 are free"):
            await bench.adapters.load("x", Path("7"))
        bench.runner.open()
        await running
        await settled(bench)
        assert bench.store.numbers == []
        with pytest.raises(AdapterNotFound, match="'x' was unloaded"):
            old.take()
        new = await bench.adapters.load("x", Path("16"))
        assert new.number != old.number


async def loading(bench: Bench, name: str, rank: str) -> Adapter:
    return await bench.adapters.load(name, Path(rank))


async def test_a_caller_that_leaves_gives_it_back_after_its_slot() -> None:
    async with opened(gated=True) as bench:
        adapter = await loading(bench, "x", "16")
        running = asyncio.ensure_future(bench.ask("x", max_tokens=50))
        await bench.runner.at_run()
        bench.adapters.unload("x")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert adapter.num_requests == 0
        bench.runner.open()
        await settled(bench)
        await loading(bench, "y", "16")  # ``Runner`` saw no step without its adapter
        await bench.ask("y")


async def test_keys_of_an_adapter_are_no_other_ones() -> None:
    prompt = tuple(range(1, 20))
    async with opened() as bench:
        for name in ("x", "y"):
            await loading(bench, name, "4")
        assert [await bench.ask(name, prompt) for name in ("", "x", "y")] == [0, 0, 0]
        assert [await bench.ask(name, prompt) for name in ("", "x", "y")] == [18, 18, 18]
        bench.adapters.unload("x")
        await loading(bench, "x", "4")
        assert await bench.ask("x", prompt) == 0, "what the former one of its name computed"
        assert await bench.ask("", prompt) == 18


@given(st.text(), st.text(), st.integers(0, 12), st.integers(0, 12))
def test_no_salt_is_that_of_another_adapter(salt: str, other_salt: str, adapter: int, other: int) -> None:
    """Whatever callers send as their salts."""
    one = request(1, [1], salt=salt, adapter=adapter)
    two = request(2, [1], salt=other_salt, adapter=other)
    assert (one.salt == two.salt) == ((salt, adapter) == (other_salt, other))


async def test_two_loads_of_one_name_are_one_after_the_other() -> None:
    async with opened() as bench:
        both = await asyncio.gather(
            loading(bench, "x", "3"), loading(bench, "x", "4"), return_exceptions=True
        )
        assert isinstance(both[0], Adapter)
        assert isinstance(both[1], AdapterExists)
        await asyncio.gather(*(loading(bench, name, "4") for name in "abc"))
        assert bench.store.most_reading == 1
        assert bench.store.numbers == [1, 2, 3, 4]


async def test_a_load_that_fails_in_the_engine_takes_no_room_and_harms_nobody() -> None:
    async with opened() as bench:
        bench.store.fault = MemoryError("none left")
        with pytest.raises(MemoryError):
            await loading(bench, "x", "16")
        bench.store.fault = None
        assert not bench.adapters.loaded
        await loading(bench, "x", "16")
        await bench.ask("x")
        assert bench.engine.is_healthy


async def test_nobody_waits_for_an_engine_that_is_gone() -> None:
    async with opened(gated=True) as bench:
        running = asyncio.ensure_future(bench.ask(""))
        await bench.runner.at_run()
        called = asyncio.ensure_future(bench.engine.between_steps(lambda: None))
        stopping = asyncio.ensure_future(bench.engine.stop())
        bench.runner.open()
        await asyncio.gather(running, called, stopping, return_exceptions=True)
        with pytest.raises(EngineFailed):
            await loading(bench, "y", "4")


async def test_a_model_without_room_says_so() -> None:
    adapters = Adapters(store_of(ScriptedRunner()))
    assert (adapters.max_rank, adapters.loaded, adapters.get("")) == (0, [], None)
    with pytest.raises(UnsupportedParameter, match="adapter: the model was exported without room"):
        adapters.get("x")
    with pytest.raises(UnsupportedParameter, match="name: the model was exported without room"):
        await adapters.load("x", Path("4"))
    with pytest.raises(AdapterNotFound):
        adapters.unload("x")


def test_what_a_guess_is_checked_with() -> None:
    scheduler, runner = slot_scheduler(1, 100, 16, (), StepBudget(16, 4)), ScriptedRunner(lambda history: 7)
    asked = request(1, [7] * 20, 30)
    asked.adapter = 5
    scheduler.add(asked)
    finish(scheduler, runner)
    assert any(chunk.num_guesses for plan in runner.plans for chunk in plan.chunks)
    assert set[int]().union(*map(adapters_of, runner.plans)) == {5}
