"""BatchGenerateText: each item is what GenerateText answers, and none is another's trouble."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import BatchGenerateTextRequest as Batch
from llm_grpc.v1.llm_pb2 import BatchGenerateTextResponse as Item
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.callers import FRESH, answer, ask, cancelled, later
from tests.rpc.conftest import Serve, until
from tests.rpc.process import ServerProcess
from tests.rpc.test_bad_input import details, send_bytes
from tests.unit.scripted_runner import ScriptedRunner

Stub: TypeAlias = "llm_pb2_grpc.LLMServiceAsyncStub"


async def batched(stub: Stub, requests: list[Request]) -> dict[int, Item]:
    """All items by place; each comes once."""
    items = [item async for item in stub.BatchGenerateText(Batch(requests=requests), timeout=30)]
    assert sorted(item.item for item in items) == list(range(len(requests)))
    return {item.item: item for item in items}


async def test_items_are_answered_as_single_requests_are_however_many(serve: Serve) -> None:
    """Twenty times as many as the server holds at once, and none is refused."""
    requests = [ask(f"prompt {n}", 1 + n % 7) for n in range(80)]
    async with serve(ScriptedRunner(), engine={"max_running": 2, "max_waiting": 2}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        items = await batched(stub, requests)
        for place, request in enumerate(requests):
            assert items[place].response == await answer(stub, request)
        assert server.admission.held == 0


async def test_items_come_as_they_end(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        batch = Batch(requests=[ask("long", 20), ask("short", 2)])
        items = aiter(stub.BatchGenerateText(batch, timeout=30))
        first = later(anext(items))
        await runner.at_run()
        while not first.done():
            await runner.next_run()
        found = await first
        assert (found.item, found.response.usage.completion_tokens) == (1, 2)
        assert server.admission.held == 1
        runner.open()
        assert [item.item async for item in items] == [0]


async def test_a_bad_item_fails_alone_and_says_what_its_call_would(serve: Serve) -> None:
    bad = [Request(), ask("a", temperature=3), ask("a", model="other"), ask("a", request_id="x" * 129)]
    requests = [ask("good"), *bad, ask("good too")]
    async with serve(ScriptedRunner()) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        items = await batched(stub, requests)
        assert [items[n].WhichOneof("result") for n in range(6)] == ["response", *["status"] * 4, "response"]
        for place, request in enumerate(bad, start=1):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await answer(stub, request)
            raw = dict(error.value.trailing_metadata())["grpc-status-details-bin"]
            assert isinstance(raw, bytes)
            status = status_pb2.Status.FromString(items[place].status.SerializeToString())
            assert status == status_pb2.Status.FromString(raw)


async def test_an_item_of_a_later_version_is_refused_alone(serve: Serve) -> None:
    later_field = b"\x0a\x01a" + b"\xaa\x01\x00"
    data = b"\x0a" + bytes([len(later_field)]) + later_field + Batch(requests=[ask("b")]).SerializeToString()
    async with serve(ScriptedRunner()) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        items = await batched(stub, list(Batch.FromString(data).requests))
        assert items[0].status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert items[0].status.message == "request.21: this version knows no such field"
        assert items[1].response.usage.completion_tokens == 5


@pytest.mark.parametrize(("count", "problem"), [(0, "has 0 entries"), (257, "has 257 entries")])
async def test_no_items_and_too_many(serve: Serve, count: int, problem: str) -> None:
    async with serve(ScriptedRunner()) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.BatchGenerateText(Batch(requests=[ask("a")] * count), timeout=30).read()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        violation = details(error.value, error_details_pb2.BadRequest).field_violations[0]
        assert (violation.field, violation.description) == ("requests", f"{problem}, and must have 1 to 256")
        assert server.admission.held == 0
        assert len(await batched(stub, [ask("a", 1)] * 256)) == 256


async def test_a_field_of_a_later_version(serve: Serve) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await send_bytes(channel, "/llm_grpc.v1.LLMService/CancelGeneration", b"\x0a\x01a\xaa\x01\x00")
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        method: Any = channel.unary_stream("/llm_grpc.v1.LLMService/BatchGenerateText")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method(b"\xaa\x01\x00", timeout=30).read()
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_others_find_room_beside_a_large_batch(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 2, "max_waiting": 4}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        batch = later(batched(stub, [ask(f"item {n}", 3) for n in range(40)]))
        await runner.at_run()
        await until(lambda: server.admission.held == 4)
        others = [later(answer(stub, ask(f"other {n}", 3))) for n in range(2)]
        await until(lambda: server.admission.held == 6)
        runner.open()
        for other in others:
            assert (await other).usage.completion_tokens == 3
        assert len(await batch) == 40


async def test_cancelling_the_call_frees_all_items(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        requests = [ask(f"item {n}", 40, request_id=f"id{n % 3}" if n % 2 else "") for n in range(40)]
        call = stub.BatchGenerateText(Batch(requests=requests), timeout=30)
        first = later(call.read())
        await runner.at_run()
        call.cancel()
        await until(lambda: server.admission.held == 0)
        await asyncio.gather(first, return_exceptions=True)
        assert not server.calls._running
        runner.open()
        assert (await answer(stub, ask("next"))).usage.completion_tokens == 5


async def test_an_item_can_be_cancelled_wherever_it_is(serve: Serve) -> None:
    """Running, in the engine's queue, waiting for a permit, and behind its own batch."""
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 1, "max_waiting": 2}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        batch = Batch(requests=[ask("item", 30, request_id=f"id{n}") for n in range(6)])
        items = aiter(stub.BatchGenerateText(batch, timeout=30))
        first = later(anext(items))
        await runner.at_run()
        await until(lambda: server.admission.held == 2)
        for name in ("id5", "id1", "id2"):
            assert await cancelled(stub, name) == 1
            found = await first
            assert found.item == int(name[-1])
            assert found.response.finish_reason == llm_pb2.FINISH_REASON_CANCELLED
            assert found.response.request_id == name
            assert found.response.usage.prompt_tokens == len("item")
            first = later(anext(items))
        runner.open()
        rest = [await first, *[item async for item in items]]
        assert [item.item for item in rest] == [0, 3, 4]
        assert {item.response.finish_reason for item in rest} == {llm_pb2.FINISH_REASON_LENGTH}


async def test_a_batch_sent_again_joins_its_items(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        requests = [ask(f"item {n}", 3, request_id=f"id{n}") for n in range(5)]
        alone = await answer(stub, requests[3])
        runner.gate()
        calls = [later(batched(stub, requests)) for _ in range(2)]
        await runner.at_run()
        runner.open()
        first, second = await asyncio.gather(*calls)
        assert first == second
        assert first[3].response == alone
        num_plans = len(runner.plans)
        assert await batched(stub, requests) == first
        assert len(runner.plans) == num_plans


async def test_items_of_a_failed_run_have_its_status_and_the_others_go_on(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 2}) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.faults = [None, None, RuntimeError("broken")]
        items = await batched(stub, [ask(f"item {n}", 4) for n in range(6)])
        failed = [item for item in items.values() if item.HasField("status")]
        assert 1 <= len(failed) <= 2
        assert {item.status.code for item in failed} == {grpc.StatusCode.INTERNAL.value[0]}
        info = error_details_pb2.ErrorInfo()
        assert failed[0].status.details[0].Unpack(info)
        assert info.reason == "ENGINE_FAILED"


async def test_a_drain_lets_those_finish_that_have_begun(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 1, "max_waiting": 0}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        call = later(batched(stub, [ask(f"item {n}", 3) for n in range(4)]))
        await runner.at_run()
        drain = later(server.drain())
        await until(lambda: server._models.draining)
        runner.open()
        items = await call
        await drain
        began = [item for item in items.values() if item.HasField("response")]
        assert len(began) == 1
        for item in items.values():
            if item not in began:
                assert item.status.code == grpc.StatusCode.UNAVAILABLE.value[0]
                assert item.status.message.startswith("the server is stopping")


async def test_the_embedded_model_answers_a_batch_as_single_requests(embedded: ServerProcess) -> None:
    requests = [
        Request(prompt=f"Translate to French: {what}", max_tokens=24, cache=FRESH)
        for what in ("the cat", "the black house", "a dog", "the tree") * 6
    ]
    async with embedded.aio_channel() as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        items = await batched(stub, requests)
        alone = [await answer(stub, request) for request in requests[:4]]
    assert [items[n].response.generated_text for n in range(24)] == [a.generated_text for a in alone] * 6
