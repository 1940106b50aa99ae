"""A thousand calls at once against four slots: each is answered or refused, none hangs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llm_grpc.v1 import admin_pb2, admin_pb2_grpc, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.conftest import Serve
from tests.rpc.process import HANG_S, ServerProcess
from tests.rpc.scrape import scrape_until
from tests.unit.scripted_runner import ScriptedRunner

CALLS = 1000
REQUEST = Request(prompt="Translate to French: the black cat", max_tokens=16)
SHORT = Request(prompt="go", max_tokens=8)
OK, REFUSED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED


@asynccontextmanager
async def channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels with a connection of their own each, and without retries: a call ends as the server said."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]
        yield [await stack.enter_async_context(channel) for channel in opened]


async def storm(to: Sequence[grpc.aio.Channel], request: Request) -> list[grpc.StatusCode]:
    stubs = [llm_pb2_grpc.LLMServiceStub(channel) for channel in to]
    return await asyncio.gather(*(outcome(stubs[number % len(stubs)], request) for number in range(CALLS)))


async def outcome(stub: llm_pb2_grpc.LLMServiceAsyncStub, request: Request) -> grpc.StatusCode:
    try:
        answer = await stub.GenerateText(request, timeout=HANG_S)
    except grpc.aio.AioRpcError as error:
        check_refusal(error)
        return error.code()
    assert answer.finish_reason
    return OK


def check_refusal(error: grpc.aio.AioRpcError) -> None:
    assert error.code() is REFUSED, error
    metadata = dict(error.trailing_metadata())
    rich = metadata["grpc-status-details-bin"]
    assert isinstance(rich, bytes)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    first, second = status_pb2.Status.FromString(rich).details
    assert first.Unpack(info)
    assert second.Unpack(retry)
    assert (info.reason, info.domain) == ("QUEUE_FULL", "llm-grpc")
    delay_ms = retry.retry_delay.ToMilliseconds()
    assert delay_ms >= 50
    assert metadata["grpc-retry-pushback-ms"] == str(delay_ms)


async def load(server_address: str) -> admin_pb2.GetLoadResponse:
    async with grpc.aio.insecure_channel(server_address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        return await stub.GetLoad(admin_pb2.GetLoadRequest(), timeout=HANG_S)


async def healthy_until(done: asyncio.Future[list[grpc.StatusCode]], channel: grpc.aio.Channel) -> int:
    """Ask for health, one call after the other, for as long as the storm lasts; returns how often."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request, answers = health_pb2.HealthCheckRequest(service="llm_grpc.v1.LLMService"), 0
    while not done.done():
        answer = await stub.Check(request, timeout=HANG_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        answers += 1
    return answers


async def test_a_storm_on_the_real_model() -> None:
    with ServerProcess("--max-running=4", "--max-waiting=16") as server:
        async with channels(server.address, 4) as opened, server.aio_channel() as probe:
            running = asyncio.ensure_future(storm(opened, REQUEST))
            assert await healthy_until(running, probe) > 1
            outcomes = Counter(await running)
            assert set(outcomes) == {OK, REFUSED}
            assert outcomes[OK] >= 4 + 16
            answer = await llm_pb2_grpc.LLMServiceStub(probe).GenerateText(REQUEST, timeout=HANG_S)
            assert answer.finish_reason
        after = await load(server.admin_address)
        assert (after.requests_running, after.requests_waiting) == (0, 0)


async def test_exactly_the_bound_is_admitted(serve: Serve) -> None:
    """While no run ends, slots and queue take as many as they hold, and every other call is refused."""
    runner = ScriptedRunner()
    bound, ports = {"max_running": 4, "max_waiting": 16}, {"metrics_address": "127.0.0.1:0"}
    async with serve(runner, engine=bound, server=ports) as (server, channel):
        runner.gate()
        async with channels(server.address, 4) as opened:
            running = asyncio.ensure_future(storm(opened, SHORT))
            await runner.at_run()
            await scrape_until(
                server.metrics_address,
                lambda s: s.value("grpc_server_handled_total", grpc_code="RESOURCE_EXHAUSTED") == CALLS - 20,
            )
            full = await load(server.admin_address)
            assert full.requests_running + full.requests_waiting == 20
            runner.open()
            assert Counter(await running) == {OK: 20, REFUSED: CALLS - 20}
        await server.admission.idle()
        answer = await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(SHORT, timeout=HANG_S)
        assert answer.usage.completion_tokens == 8
        after = await load(server.admin_address)
        assert (after.requests_running, after.requests_waiting) == (0, 0)
