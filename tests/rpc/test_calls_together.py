"""Chats and answers with a form are calls as others are: sent again, cancelled, left by their callers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.chat_pb2 import ROLE_USER, ChatMessage
from llm_grpc.v1.llm_pb2 import FINISH_REASON_CANCELLED as CANCELLED
from llm_grpc.v1.llm_pb2 import ChatRequest, ChatResponse
from tests.rpc.callers import FRESH, answer, ask, cancelled, later, streamed
from tests.rpc.conftest import Serve, until
from tests.rpc.process import HANG_S
from tests.rpc.test_tool_choice import REQUIRED, Rambling, asked, model_that_shows
from tests.unit.scripted_runner import ScriptedRunner

USER = ChatMessage(role=ROLE_USER, content="hi")
FORM = llm_pb2.Constraint(regex="([a-z][0-9]){20}")


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    return model_that_shows(tmp_path, "<tool_call>")


async def unary(stub: Any, request: ChatRequest) -> list[ChatResponse]:
    return [await stub.Chat(request, timeout=HANG_S)]


async def stream(stub: Any, request: ChatRequest) -> list[ChatResponse]:
    return [part async for part in stub.StreamChat(request, timeout=HANG_S)]


READ = pytest.mark.parametrize("read", [unary, stream])


async def is_free(server: Any) -> None:
    """Wait until nothing is held, and check that the memory of the cache adds up."""
    engine = server._hosts[0]._engine
    await until(lambda: server.admission.held == 0)
    await until(lambda: engine.load.num_running == 0)
    engine._engine.check_integrity()
    assert not server.calls._running
    assert not server.calls._replays._running


@READ
async def test_a_chat_sent_again_is_the_same_with_the_ids_of_its_calls(
    serve: Serve, chat_model: Path, read: Any
) -> None:
    runner = Rambling()
    async with serve(runner, model=chat_model) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = asked(REQUIRED, n=2, request_id="id")
        request.sampling.ClearField("seed")
        first, joined = await asyncio.gather(read(stub, request), read(stub, request))
        num_plans = len(runner.plans)
        again = await read(stub, request)
        assert first == joined == again
        assert len(runner.plans) == num_plans
        assert any(part.message.tool_calls for part in first)
        other = await read(stub, asked(REQUIRED, n=2, request_id="other"))
        found, others = ({c.id for p in parts for c in p.message.tool_calls} for parts in (first, other))
        assert not found & others
        await is_free(server)


@READ
async def test_a_chat_that_is_cancelled_tells_what_there_is(
    serve: Serve, chat_model: Path, read: Any
) -> None:
    runner = ScriptedRunner()
    async with serve(runner, model=chat_model) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        request = ChatRequest(messages=[USER], max_tokens=40, request_id="id", cache=FRESH)
        call = later(read(stub, request))
        for _ in range(4):
            await runner.at_run()
            runner.let_pass()
        await runner.at_run()
        assert await cancelled(stub, "id") == 1
        parts = await call
        runner.open()
        assert parts[-1].finish_reason == CANCELLED
        assert 0 < parts[-1].usage.completion_tokens <= 4
        assert "".join(part.message.content for part in parts)
        assert await cancelled(stub, "id") == 0
        assert await read(stub, request) == parts, "its answer is the cancelled one"
        await is_free(server)


async def test_a_call_of_a_tool_that_is_cancelled_on_its_way_is_content(
    serve: Serve, chat_model: Path
) -> None:
    runner = Rambling()
    async with serve(runner, model=chat_model) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        call = later(unary(stub, asked(REQUIRED, request_id="id")))
        for _ in range(8):
            await runner.at_run()
            runner.let_pass()
        await runner.at_run()
        assert await cancelled(stub, "id") == 1
        (whole,) = await call
        runner.open()
        assert not whole.message.tool_calls
        assert whole.message.content.startswith('<tool_call>\n{"')
        assert whole.finish_reason == CANCELLED
        await is_free(server)


@pytest.mark.parametrize("read", [answer, streamed], ids=["unary", "stream"])
@pytest.mark.parametrize("is_told", [True, False], ids=["cancelled", "left"])
async def test_a_form_that_ends_on_its_way_leaves_nothing_behind(
    serve: Serve, read: Any, is_told: bool
) -> None:
    runner = Rambling()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        sampling = llm_pb2.Sampling(temperature=1.0, seed=1, n=3)
        request = ask("go on", 60, constraint=FORM, sampling=sampling, request_id="id")
        expected = await answer(stub, ask("go on", 60, constraint=FORM, sampling=sampling))
        assert {each.usage.completion_tokens for each in expected.sequences} == {40}
        runner.gate()
        call = later(read(stub, request))
        for _ in range(6):
            await runner.at_run()
            runner.let_pass()
        await runner.at_run()
        if is_told:
            assert await cancelled(stub, "id") == 1
            found = await call
            parts = found if isinstance(found, list) else [*found.sequences]
            for sequence in expected.sequences:
                mine = [part for part in parts if part.index == sequence.index]
                assert mine[-1].finish_reason == CANCELLED
                assert sequence.generated_text.startswith("".join(part.generated_text for part in mine))
        else:
            call.cancel()
        await until(lambda: server.admission.held == 0)
        runner.open()
        await is_free(server)
        assert (await answer(stub, ask("go on", 60, constraint=FORM, sampling=sampling))) == expected
