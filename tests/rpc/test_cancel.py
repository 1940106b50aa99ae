"""A call that ends early gives its slot back within one engine step."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from tests.rpc.conftest import Serve, until
from tests.unit.scripted_runner import ScriptedRunner

LONG = llm_pb2.GenerateTextRequest(prompt="go on", max_tokens=50, cache=llm_pb2.Cache(disabled=True))


@pytest.mark.parametrize("method", ["GenerateText", "StreamGenerateText"])
@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_the_next_step_belongs_to_the_next_request(serve: Serve, method: str, end: str) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 1}) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        call = getattr(stub, method)(LONG, timeout=0.3 if end == "deadline" else 30)
        await runner.at_run()
        await runner.next_run()
        if end == "cancel":
            call.cancel()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await consume(call)
        async with asyncio.timeout(30):
            await server.admission.idle()
        neighbour = asyncio.ensure_future(stub.GenerateText(LONG, timeout=30))
        await until(lambda: server.admission.held == 1)
        plan = await runner.next_run()
        assert plan.chunk, "the slot was not free in the step after the end of the call"
        assert (plan.chunk.start, plan.decode) == (0, ())
        runner.open()
        assert (await neighbour).finish_reason == llm_pb2.FINISH_REASON_LENGTH


async def test_a_request_that_waits_can_be_cancelled(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 1}) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        first = asyncio.ensure_future(stub.GenerateText(LONG, timeout=30))
        await runner.at_run()
        second = stub.GenerateText(LONG, timeout=30)
        await until(lambda: server.admission.held == 2)
        second.cancel()
        await until(lambda: server.admission.held == 1)
        runner.open()
        assert (await first).usage.completion_tokens == 50
        assert server.admission.held == 0


async def consume(call: Any) -> None:
    if isinstance(call, grpc.aio.UnaryStreamCall):
        async for _ in call:
            pass
    else:
        await call
