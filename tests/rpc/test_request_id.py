"""A request under a name is computed once, however often it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.callers import CallersByName, answer, ask, later, streamed
from tests.rpc.conftest import Serve, until
from tests.rpc.process import ServerProcess
from tests.rpc.test_bad_input import details
from tests.unit.scripted_runner import ScriptedRunner

Read = Callable[..., Awaitable[Any]]


@pytest.mark.parametrize("read", [answer, streamed], ids=["unary", "stream"])
async def test_a_retry_joins_the_first_and_later_gets_the_same(serve: Serve, read: Read) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 2}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        first = later(read(stub, ask("go on", 9, request_id="id-1")))
        await runner.at_run()
        for _ in range(4):
            await runner.next_run()
        retry = later(read(stub, ask("go on", 9, request_id="id-1")))
        other = later(read(stub, ask("go on", 9, request_id="id-2")))
        await until(lambda: server.admission.held == 2)
        runner.open()
        found, again, another = await asyncio.gather(first, retry, other)
        assert again == found
        last = found if read is answer else found[-1]
        assert (last.request_id, last.usage.completion_tokens) == ("id-1", 9)
        assert (another if read is answer else another[-1]).request_id == "id-2"
        num_plans = len(runner.plans)
        assert await read(stub, ask("go on", 9, request_id="id-1")) == found
        assert len(runner.plans) == num_plans, "nothing is computed for a replay"


async def test_without_an_id_nothing_is_echoed_or_joined(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        calls = [later(answer(stub, ask("go on"))) for _ in range(2)]
        await until(lambda: server.admission.held == 2)
        runner.open()
        assert {reply.request_id for reply in await asyncio.gather(*calls)} == {""}


async def test_the_window_can_be_turned_off(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, server={"dedupe_window_s": 0}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        calls = [later(answer(stub, ask("go on", request_id="id"))) for _ in range(2)]
        await until(lambda: server.admission.held == 2)
        runner.open()
        assert {reply.request_id for reply in await asyncio.gather(*calls)} == {"id"}


async def test_callers_do_not_get_each_others_answers(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, authenticator=CallersByName()) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        await answer(stub, ask("go on", request_id="id"), "alice")
        num_plans = len(runner.plans)
        await answer(stub, ask("go on", request_id="id"), "bob")
        assert len(runner.plans) == 2 * num_plans
        await answer(stub, ask("go on", request_id="id"), "alice")
        assert len(runner.plans) == 2 * num_plans


async def test_the_first_caller_may_leave_and_the_last_frees_the_slot(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        calls = [stub.GenerateText(ask("go on", 40, request_id="id"), timeout=30) for _ in range(2)]
        await runner.at_run()
        await until(lambda: readers_of(server) == 2)
        calls[0].cancel()
        await until(lambda: readers_of(server) == 1)
        assert server.admission.held == 1
        await runner.next_run()
        calls[1].cancel()
        await until(lambda: server.admission.held == 0)
        runner.open()
        assert (await answer(stub, ask("go on", 40, request_id="id"))).usage.completion_tokens == 40


def readers_of(server: Any) -> int:
    """Who reads the only computation there is."""
    (computation,) = server.calls._replays._running.values()
    num_readers: int = computation.num_readers
    return num_readers


async def test_a_failure_is_told_to_all_and_a_retry_computes_again(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        calls = [later(answer(stub, ask("go on", request_id="id"))) for _ in range(3)]
        await runner.at_run()
        await until(lambda: readers_of(server) == 3)
        runner.faults = [RuntimeError("broken")]
        runner.open()
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() is grpc.StatusCode.INTERNAL
        assert (await answer(stub, ask("go on", request_id="id"))).usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"request_id": "é" * 64 + "x"}, "request_id", "has 129 bytes of UTF-8, and the limit is 128"),
        ({"priority": 101}, "priority", "is 101, and must be -100 to 100"),
        ({"priority": -101}, "priority", "is -101, and must be -100 to 100"),
    ],
)
async def test_a_bad_name_or_priority(serve: Serve, fields: Any, field: str, problem: str) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        score = llm_pb2.ScoreTextRequest(prompt="a", candidates=["b"], **fields)
        for call in (
            stub.GenerateText(Request(prompt="a", **fields), timeout=30),
            stub.StreamGenerateText(Request(prompt="a", **fields), timeout=30).read(),
            stub.ScoreText(score, timeout=30),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            violation = details(error.value, error_details_pb2.BadRequest).field_violations[0]
            assert (violation.field, violation.description) == (field, problem)
        longest = await answer(stub, ask("a", request_id="é" * 64))
        assert longest.request_id == "é" * 64


requests = st.builds(
    Request,
    prompt=st.text(min_size=1, max_size=30),
    max_tokens=st.integers(1, 12),
    request_id=st.text(min_size=1, max_size=8),
    priority=st.integers(-100, 100),
    sampling=st.builds(llm_pb2.Sampling, temperature=st.sampled_from([0.0, 0.9])),
    response_options=st.builds(llm_pb2.ResponseOptions, tokens=st.booleans()),
)


@settings(max_examples=25, deadline=None)
@given(request=requests)
def test_what_is_answered_again_is_equal_byte_for_byte(embedded: ServerProcess, request: Request) -> None:
    """Also where the server drew the seed."""
    with embedded.channel() as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        first, again = (stub.GenerateText(request, timeout=60) for _ in range(2))
        assert first.SerializeToString() == again.SerializeToString()
        parts, replayed = (list(stub.StreamGenerateText(request, timeout=60)) for _ in range(2))
        assert [p.SerializeToString() for p in parts] == [p.SerializeToString() for p in replayed]
        assert [part.request_id for part in parts] == [""] * (len(parts) - 1) + [request.request_id]
