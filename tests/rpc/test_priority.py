"""Who goes first among those that wait, and how far a caller may push."""

from __future__ import annotations

import asyncio

import pytest

from llm_grpc.v1 import llm_pb2_grpc, model_pb2, model_pb2_grpc
from tests.rpc.callers import answer, ask, later
from tests.rpc.conftest import Serve, until
from tests.unit.scripted_runner import ScriptedRunner


@pytest.mark.parametrize(
    ("cap", "order"), [(100, [3, 2, 1, 0]), (0, [1, 2, 3, 0])], ids=["priority", "capped"]
)
async def test_higher_ones_go_first_up_to_the_cap(serve: Serve, cap: int, order: list[int]) -> None:
    """Of equal priority who came first goes first."""
    runner, ended = ScriptedRunner(), list[int]()
    async with serve(runner, engine={"max_running": 1}, server={"max_priority": cap}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        first = later(answer(stub, ask("first")))
        await runner.at_run()

        async def wait_for(place: int, priority: int) -> None:
            await answer(stub, ask(f"{place}", 2, priority=priority))
            ended.append(place)

        waiting = []
        for place, priority in enumerate((-100, 5, 50, 100)):
            waiting.append(later(wait_for(place, priority)))
            await until(lambda: server.admission.held == 1 + len(waiting))
        runner.open()
        await asyncio.gather(first, *waiting)
        assert ended == order


@pytest.mark.parametrize("cap", [0, 7])
async def test_get_model_tells_the_cap_and_the_limits(serve: Serve, cap: int) -> None:
    async with serve(ScriptedRunner(), server={"max_priority": cap}) as (_, channel):
        stub = model_pb2_grpc.ModelServiceStub(channel)
        limits = (await stub.GetModel(model_pb2.GetModelRequest(), timeout=30)).model.limits
        assert (limits.max_priority, limits.max_batch_items, limits.max_top_logprobs) == (cap, 256, 20)
