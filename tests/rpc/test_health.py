"""The health contract: what each name says from the first second to the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from tests.rpc.conftest import Serve, loading_server, until
from tests.unit.scripted_runner import HANG_S, ScriptedRunner

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READY_NAMES = (
    "",
    "llm_grpc.v1.LLMService",
    "llm_grpc.v1.ModelService",
    "llm_grpc.v1.TokenizerService",
    "LLMService",
    "model/scripted",
)
REQUEST = llm_pb2.GenerateTextRequest(prompt="go", max_tokens=8)


def health_stub(channel: grpc.aio.Channel) -> Any:
    """The stub; its methods are not in its stub file."""
    return health_pb2_grpc.HealthStub(channel)


async def check(channel: grpc.aio.Channel, name: str) -> int:
    request = health_pb2.HealthCheckRequest(service=name)
    return int((await health_stub(channel).Check(request, timeout=HANG_S)).status)


@asynccontextmanager
async def watching(channel: grpc.aio.Channel, name: str) -> AsyncIterator[AsyncIterator[int]]:
    call = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=HANG_S)

    async def statuses() -> AsyncIterator[int]:
        async for response in call:
            yield response.status

    yield statuses()
    call.cancel()


async def test_not_serving_until_loaded_and_live_at_once(scripted_model: Path) -> None:
    async with loading_server(scripted_model) as (server, starting, may_load):
        await until(lambda: server.admin_address != "")
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert [await check(channel, name) for name in READY_NAMES] == [NOT_SERVING] * len(READY_NAMES)
            assert await check(channel, "live") == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(REQUEST, timeout=HANG_S)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            async with watching(channel, "llm_grpc.v1.LLMService") as statuses:
                assert await anext(statuses) == NOT_SERVING
                may_load.set()
                assert await anext(statuses) == SERVING
            await starting
            assert [await check(channel, name) for name in READY_NAMES] == [SERVING] * len(READY_NAMES)


async def test_unknown_name_is_not_found(serve: Serve) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await check(channel, "no.such.Service")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_answers_while_the_engine_is_in_a_run(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (_, channel):
        runner.gate()
        generating = asyncio.ensure_future(
            llm_pb2_grpc.LLMServiceStub(channel).GenerateText(REQUEST, timeout=HANG_S)
        )
        await runner.at_run()
        assert await check(channel, "llm_grpc.v1.LLMService") == SERVING
        assert await check(channel, "live") == SERVING
        runner.open()
        await generating


async def test_a_drain_says_not_serving_first_and_stays_live(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        generating = asyncio.ensure_future(stub.GenerateText(REQUEST, timeout=HANG_S))
        await runner.at_run()
        async with watching(channel, "llm_grpc.v1.LLMService") as statuses, watching(channel, "live") as live:
            assert (await anext(statuses), await anext(live)) == (SERVING, SERVING)
            draining = asyncio.ensure_future(server.drain())
            assert await anext(statuses) == NOT_SERVING
            assert [status async for status in live] == [], "live changed, or its Watch held up the drain"
        runner.open()
        assert (await generating).finish_reason == llm_pb2.FINISH_REASON_LENGTH
        await draining


async def test_two_failed_runs_in_a_row_and_a_good_one(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        async with watching(channel, "model/scripted") as statuses:
            assert await anext(statuses) == SERVING
            runner.faults += [RuntimeError("a device fault at 0xdeadbeef"), RuntimeError("again")]
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.GenerateText(REQUEST, timeout=HANG_S)
                assert error.value.code() is grpc.StatusCode.INTERNAL
                assert "0xdeadbeef" not in (error.value.details() or "")
            assert await anext(statuses) == NOT_SERVING
            assert await check(channel, "live") == SERVING
            await stub.GenerateText(REQUEST, timeout=HANG_S)
            assert await anext(statuses) == SERVING
