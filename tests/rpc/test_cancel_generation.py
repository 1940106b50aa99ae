"""CancelGeneration: whoever reads gets what there is, and the slot is free in the next step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import FINISH_REASON_CANCELLED as CANCELLED
from llm_grpc.v1.llm_pb2 import FINISH_REASON_LENGTH as LENGTH
from tests.rpc.callers import CallersByName, answer, ask, cancelled, later, streamed
from tests.rpc.conftest import Serve, until
from tests.rpc.models import CONTEXT_TOKENS
from tests.rpc.test_bad_input import details
from tests.unit.scripted_runner import ScriptedRunner

Read = Callable[..., Awaitable[Any]]
READ = pytest.mark.parametrize("read", [answer, streamed], ids=["unary", "stream"])


def whole(found: llm_pb2.GenerateTextResponse | list[llm_pb2.GenerateTextResponse]) -> Any:
    """The answer of either method; of a stream the last message with all the text."""
    if not isinstance(found, list):
        return found
    joined = llm_pb2.GenerateTextResponse()
    joined.CopyFrom(found[-1])
    joined.generated_text = "".join(part.generated_text for part in found)
    assert [bool(part.finish_reason) for part in found] == [False] * (len(found) - 1) + [True]
    return joined


@READ
async def test_a_request_that_decodes(serve: Serve, read: Read) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 1}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        alone = await answer(stub, ask("go on", 40))
        runner.gate()
        call = later(read(stub, ask("go on", 40, request_id="id")))
        await runner.at_run()
        neighbour = later(answer(stub, ask("next")))
        await until(lambda: server.admission.held == 2)
        for _ in range(3):
            await runner.next_run()
        await until(lambda: messages_of(server) > 0 or read is answer)
        assert await cancelled(stub, "id") == 1
        assert await cancelled(stub, "id") == 0
        found = whole(await call)
        assert (found.finish_reason, found.request_id, found.model) == (CANCELLED, "id", "scripted")
        assert 0 < found.usage.completion_tokens <= 3
        assert found.usage.prompt_tokens == len("go on")
        assert found.generated_text
        assert alone.generated_text.startswith(found.generated_text.rstrip("\ufffd"))
        await until(lambda: server.admission.held == 1)
        plan = await runner.next_run()
        assert plan.chunk, "the slot was not free in the step after the end of the request"
        assert (plan.chunk.start, plan.decode) == (0, ())
        runner.open()
        assert (await neighbour).finish_reason == LENGTH


def messages_of(server: Any) -> int:
    """How many messages the only computation there is has so far."""
    (computation,) = server.calls._replays._running.values()
    return len(computation.messages)


@READ
async def test_a_request_that_waits_or_is_prefilled(serve: Serve, read: Read) -> None:
    runner = ScriptedRunner()
    engine = {"max_running": 1, "chunk_tokens": 4}
    async with serve(runner, engine=engine) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        prefilled = later(read(stub, ask("a long prompt", 9, request_id="prefilled")))
        await runner.at_run()
        waiting = later(read(stub, ask("wait", 9, request_id="waiting")))
        await until(lambda: server.admission.held == 2)
        for name, call, num_prompt in (("waiting", waiting, 4), ("prefilled", prefilled, 13)):
            assert await cancelled(stub, name) == 1
            found = whole(await call)
            assert (found.generated_text, found.finish_reason) == ("", CANCELLED)
            assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (num_prompt, 0)
        await until(lambda: server.admission.held == 0)
        runner.open()
        assert (await answer(stub, ask("a long prompt", 9))).usage.completion_tokens == 9


async def test_text_that_was_held_back_for_a_stop_string_is_told(serve: Serve) -> None:
    runner = ScriptedRunner(lambda history: ord("c") - 33)  # "c" again and again
    async with serve(runner) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        stopping = llm_pb2.Stopping(stop_strings=["cccccccX"])
        call = later(streamed(stub, ask("go", 40, request_id="id", stopping=stopping)))
        await runner.at_run()
        for _ in range(3):
            await runner.next_run()
        assert await cancelled(stub, "id") == 1
        found = whole(await call)
        assert found.generated_text == "c" * found.usage.completion_tokens != ""


async def test_all_of_an_id_and_nothing_else(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, authenticator=CallersByName()) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        mine: list[asyncio.Future[Any]] = [
            later(answer(stub, ask("one", 9, request_id="id"), "alice")),
            later(answer(stub, ask("two", 9, request_id="id"), "alice")),
            later(streamed(stub, ask("two", 9, request_id="id"), "alice")),
        ]
        others = [
            later(answer(stub, ask("one", 9, request_id="id"), "bob")),
            later(answer(stub, ask("one", 9, request_id="id2"), "alice")),
            later(answer(stub, ask("one", 9), "alice")),
        ]
        await runner.at_run()
        await until(lambda: server.admission.held == 6)
        assert await cancelled(stub, "unknown", "alice") == 0
        assert await cancelled(stub, "id", "alice") == 3
        assert {whole(await call).finish_reason for call in mine} == {CANCELLED}
        runner.open()
        assert {(await call).finish_reason for call in others} == {LENGTH}
        assert await cancelled(stub, "id", "bob") == 0


async def test_a_retry_and_the_first_are_one_request_and_both_get_its_end(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        calls = [later(answer(stub, ask("go on", 9, request_id="id"))) for _ in range(2)]
        await runner.at_run()
        assert await cancelled(stub, "id") == 1
        first, second = await asyncio.gather(*calls)
        assert first == second
        assert first.finish_reason == CANCELLED
        runner.open()
        assert await answer(stub, ask("go on", 9, request_id="id")) == first, "a late retry starts nothing"


async def test_a_score_ends_with_a_status(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        request = llm_pb2.ScoreTextRequest(prompt="a", candidates=[*"bcdefghij"], request_id="id")
        call = later(stub.ScoreText(request, timeout=30))
        await runner.at_run()
        assert await cancelled(stub, "id") == 1
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.CANCELLED
        assert details(error.value, error_details_pb2.ErrorInfo).reason == "CANCELLED"
        await until(lambda: server.admission.held == 0)


@pytest.mark.parametrize(("request_id", "problem"), [("", "must not be empty"), ("x" * 129, "has 129 bytes")])
async def test_a_bad_id(serve: Serve, request_id: str, problem: str) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await cancelled(llm_pb2_grpc.LLMServiceStub(channel), request_id)
        violation = details(error.value, error_details_pb2.BadRequest).field_violations[0]
        assert violation.field == "request_id"
        assert problem in violation.description


async def test_a_storm_leaves_nothing_behind(serve: Serve) -> None:
    """Requests that share ids come, join, leave and are cancelled while others run to their end."""
    choose = random.Random(1)
    runner = ScriptedRunner()
    limits = {"max_running": 3, "max_waiting": 200, "chunk_tokens": 4}
    async with serve(runner, engine=limits) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)

        async def generate(number: int) -> None:
            read: Read = choose.choice([answer, streamed])
            most = choose.randrange(1, CONTEXT_TOKENS - 10)
            call = later(read(stub, ask("go on" * choose.randrange(1, 3), most, request_id=f"{number % 9}")))
            if choose.random() < 0.3:
                await asyncio.sleep(0)
                call.cancel()
            with suppress(asyncio.CancelledError):
                found = whole(await call)
                assert (found.finish_reason == LENGTH) == (found.usage.completion_tokens == most), found

        async def cancel(number: int) -> None:
            for _ in range(number % 7):
                await asyncio.sleep(0)
            await cancelled(stub, f"{number % 9}")

        await asyncio.gather(*(generate(n) for n in range(120)), *(cancel(n) for n in range(60)))
        await until(lambda: server.admission.held == 0)
        assert not server.calls._running
        assert not server.calls._replays._running
        final = await answer(stub, ask("one more", 9))
        assert final.usage.completion_tokens == 9
        engine = server._hosts[0]._engine
        assert engine
        await until(lambda: engine.load.num_running == 0)
        engine._engine.check_integrity()


@READ
@pytest.mark.parametrize("num_steps", [0, 3])
async def test_all_sequences_of_a_request_end(serve: Serve, read: Read, num_steps: int) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        options = llm_pb2.ResponseOptions(timing=True, token_text=True, echo=True, prompt_tokens=True)
        sampling = llm_pb2.Sampling(temperature=1, n=3, seed=7)
        request = ask("go on", 40, request_id="id", sampling=sampling, response_options=options)
        call = later(read(stub, request))
        await runner.at_run()
        for _ in range(num_steps):
            await runner.next_run()
        assert await cancelled(stub, "id") == 1
        found = await call
        if isinstance(found, list):
            ends = {part.index: part for part in found if part.finish_reason}
            assert sorted(ends) == [0, 1, 2]
            ended: list[Any] = [ends[index] for index in range(3)]
        else:
            ended = list(found.sequences)
        assert [end.finish_reason for end in ended] == [CANCELLED] * 3
        assert [end.seed for end in ended] == [7, 8, 9]
        for end in ended:
            assert end.usage.prompt_tokens == len("go on")
            assert end.timing.queue_ms >= 0
            assert end.timing.prefill_ms >= 0
            assert end.timing.decode_ms >= 0
        runner.open()
        await until(lambda: server.admission.held == 0)


async def test_sequences_of_a_batch_take_a_permit_each(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 2, "max_waiting": 2}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        sampling = llm_pb2.Sampling(temperature=1, n=2, seed=7)
        batch = llm_pb2.BatchGenerateTextRequest(requests=[ask("go", 4, sampling=sampling)] * 9)
        items = [item async for item in stub.BatchGenerateText(batch, timeout=30)]
        assert len(items) == 9
        assert all(len(item.response.sequences) == 2 for item in items)
        assert server.admission.held == 0
