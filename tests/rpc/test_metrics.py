"""/metrics: there from the first second, under the promised names, and right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from tests.rpc.conftest import Serve, loading_server, until
from tests.rpc.process import HANG_S
from tests.rpc.scrape import scrape, scrape_until
from tests.unit.scripted_runner import ScriptedRunner

PROMISED = {
    "llm_grpc_requests_running",
    "llm_grpc_requests_waiting",
    "llm_grpc_prompt_tokens_total",
    "llm_grpc_prefix_cache_queries_total",
    "llm_grpc_prefix_cache_hits_total",
    "llm_grpc_generation_tokens_total",
    "llm_grpc_preemptions_total",
    "llm_grpc_time_to_first_token_seconds_bucket",
    "llm_grpc_inter_token_latency_seconds_bucket",
    "llm_grpc_e2e_request_latency_seconds_bucket",
}
HANDLED = "grpc_server_handled_total"
PREFIX = "llm_grpc_"
ON = {"metrics_address": "127.0.0.1:0"}


async def test_there_before_the_model(scripted_model: Path) -> None:
    async with loading_server(scripted_model) as (server, starting, may_load):
        await until(lambda: server.metrics_address != "")
        samples = await scrape(server.metrics_address)
        assert samples.names >= PROMISED
        assert not starting.done()
        assert samples.value("llm_grpc_requests_running") == 0
        may_load.set()
        await starting


async def test_counters_are_the_sums_of_what_callers_got(serve: Serve) -> None:
    async with serve(ScriptedRunner(), server=ON) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        usages = []
        for prompt, max_tokens in (("a", 1), ("two words", 9), ("and three words", 17)):
            request = llm_pb2.GenerateTextRequest(prompt=prompt, max_tokens=max_tokens)
            usages.append((await stub.GenerateText(request, timeout=HANG_S)).usage)
            usages.append([part async for part in stub.StreamGenerateText(request, timeout=HANG_S)][-1].usage)
        looked_up = sum(usage.prompt_tokens for usage in usages)
        fresh = llm_pb2.GenerateTextRequest(prompt="a b", max_tokens=1, cache=llm_pb2.Cache(disabled=True))
        usages.append((await stub.GenerateText(fresh, timeout=HANG_S)).usage)
        samples = await scrape(server.metrics_address)
    found = sum(usage.cached_tokens for usage in usages)
    assert samples.value(f"{PREFIX}prefix_cache_queries_total") == looked_up
    assert samples.value(f"{PREFIX}prefix_cache_hits_total") == found
    assert found == len("two words") - 1 + len("a") + len("and three words") - 1
    generated = sum(usage.completion_tokens for usage in usages)
    assert generated == 2 * (1 + 9 + 17) + 1
    assert samples.value(f"{PREFIX}prompt_tokens_total") == sum(usage.prompt_tokens for usage in usages)
    assert samples.value(f"{PREFIX}generation_tokens_total") == generated
    assert samples.value(f"{PREFIX}time_to_first_token_seconds_count") == len(usages)
    assert samples.value(f"{PREFIX}inter_token_latency_seconds_count") == generated - len(usages)
    assert samples.value(f"{PREFIX}e2e_request_latency_seconds_count") == len(usages)
    assert samples.value(f"{PREFIX}request_success_total", finished_reason="length") == len(usages)


async def test_gauges_follow_a_run(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 2, "max_waiting": 4}, server=ON) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = llm_pb2.GenerateTextRequest(prompt="go", max_tokens=8)
        calls = [asyncio.ensure_future(stub.GenerateText(request, timeout=HANG_S)) for _ in range(5)]
        await runner.at_run()
        await until(lambda: server.admission.held == 5)
        await runner.next_run()  # a step that saw them all has ended
        await runner.next_run()
        samples = await scrape(server.metrics_address)
        assert samples.value("llm_grpc_requests_running") == 2
        assert samples.value("llm_grpc_requests_waiting") == 3
        assert 0 < samples.value("llm_grpc_kv_utilization") <= 1
        runner.open()
        await asyncio.gather(*calls)
        gauges = [PREFIX + name for name in ("requests_running", "requests_waiting", "kv_utilization")]
        await scrape_until(server.metrics_address, lambda s: not any(s.value(gauge) for gauge in gauges))


async def test_calls_by_code(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, server=ON) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = llm_pb2.GenerateTextRequest(prompt="go", max_tokens=8)
        for _ in range(2):
            await stub.GenerateText(request, timeout=HANG_S)
        assert [part async for part in stub.StreamGenerateText(request, timeout=HANG_S)]
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GenerateText(llm_pb2.GenerateTextRequest(), timeout=HANG_S)
        runner.gate()
        left = stub.StreamGenerateText(request, timeout=HANG_S)
        await runner.at_run()
        left.cancel()
        unary, streaming = {"grpc_method": "GenerateText"}, {"grpc_method": "StreamGenerateText"}
        samples = await scrape_until(
            server.metrics_address, lambda s: s.value(HANDLED, **streaming, grpc_code="CANCELLED") == 1
        )
        runner.open()
    assert samples.value(HANDLED, **unary, grpc_code="OK") == 2
    assert samples.value(HANDLED, **unary, grpc_code="INVALID_ARGUMENT") == 3
    assert samples.value(HANDLED, **unary) == 5
    assert samples.value(HANDLED, **streaming, grpc_code="OK") == 1
    assert samples.value(HANDLED, **streaming) == 2
    assert samples.value(HANDLED, grpc_service="llm_grpc.v1.LLMService", grpc_type="server_stream") == 2
    assert samples.value("grpc_server_started_total") == samples.value(HANDLED) == 7
    assert samples.value("grpc_server_handling_seconds_count") == 7


async def test_its_address_can_be_empty(serve: Serve) -> None:
    off = {"metrics_address": "", "admin_address": ""}
    async with serve(ScriptedRunner(), server=off) as (server, channel):
        assert (server.metrics_address, server.admin_address) == ("", "")
        request = llm_pb2.GenerateTextRequest(prompt="go", max_tokens=2)
        answer = await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(request, timeout=HANG_S)
        assert answer.usage.completion_tokens == 2
