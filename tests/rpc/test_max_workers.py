"""``max_workers``: a bound on the calls of the data plane, whatever they ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from llm_grpc.original import llm_service_pb2, llm_service_pb2_grpc
from llm_grpc.v1 import admin_pb2, admin_pb2_grpc, llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.conftest import Serve, until
from tests.rpc.test_health import SERVING, check
from tests.rpc.test_overload import check_refusal
from tests.unit.scripted_runner import HANG_S, ScriptedRunner

REQUEST = Request(prompt="go", max_tokens=8)


def calls(channel: grpc.aio.Channel) -> list[Callable[[], Any]]:
    """One call of each kind, for later."""
    llm = llm_pb2_grpc.LLMServiceStub(channel)
    original = llm_service_pb2_grpc.LLMServiceStub(channel)
    models = model_pb2_grpc.ModelServiceStub(channel)
    return [
        lambda: llm.GenerateText(REQUEST, timeout=HANG_S),
        lambda: llm.StreamGenerateText(REQUEST, timeout=HANG_S).read(),
        lambda: original.GenerateText(llm_service_pb2.TextGenerationRequest(prompt="go"), timeout=HANG_S),
        lambda: models.GetModel(model_pb2.GetModelRequest(), timeout=HANG_S),
    ]


async def test_one_call_more_is_refused_and_health_is_not_counted(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, server={"max_workers": 2}) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        unary = asyncio.ensure_future(stub.GenerateText(REQUEST, timeout=HANG_S))
        stream = stub.StreamGenerateText(REQUEST, timeout=HANG_S)
        await runner.at_run()
        await until(lambda: server.admission.held == 2)
        for call in calls(channel):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call()
            check_refusal(error.value)
            assert error.value.details() == "2 calls are being served, and the limit is 2"
        assert await check(channel, "") == SERVING
        async with grpc.aio.insecure_channel(server.admin_address) as admin:
            request = admin_pb2.GetLoadRequest()
            load = await admin_pb2_grpc.AdminServiceStub(admin).GetLoad(request, timeout=HANG_S)
            assert (load.max_running, load.max_waiting) == (4, 4)
        runner.open()
        assert (await unary).usage.completion_tokens == 8
        assert [part async for part in stream][-1].usage.completion_tokens == 8
        for call in calls(channel):
            assert await call()


async def test_a_call_gives_its_place_back_however_it_ends(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, server={"max_workers": 1}) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.GenerateText(Request(), timeout=HANG_S)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        runner.gate()
        left = stub.StreamGenerateText(REQUEST, timeout=HANG_S)
        await runner.at_run()
        left.cancel()
        runner.open()
        async with asyncio.timeout(HANG_S):
            while True:
                try:
                    assert (await stub.GenerateText(REQUEST, timeout=HANG_S)).usage.completion_tokens == 8
                    break
                except grpc.aio.AioRpcError as error_value:  # the server has not heard of the cancel yet
                    check_refusal(error_value)


async def test_a_full_server_lets_its_callers_cancel(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, server={"max_workers": 1}) as (_, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        asked = Request(prompt="go", max_tokens=8, request_id="long")
        unary = asyncio.ensure_future(stub.GenerateText(asked, timeout=HANG_S))
        await runner.at_run()
        request = llm_pb2.CancelGenerationRequest(request_id="long")
        assert (await stub.CancelGeneration(request, timeout=HANG_S)).num_cancelled == 1
        assert (await unary).finish_reason == llm_pb2.FINISH_REASON_CANCELLED
