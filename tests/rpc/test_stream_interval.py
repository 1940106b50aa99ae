"""Messages of a stream that are kept apart: fewer of them, and nothing else is different."""

from __future__ import annotations

from typing import Any

import pytest

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response
from tests.rpc.conftest import Serve
from tests.rpc.process import ServerProcess
from tests.unit.scripted_runner import HANG_S, ScriptedRunner

NEVER = {"stream_interval_ms": 60_000}
"""No test lasts as long: what is sent has not waited for it."""


def asking(**fields: Any) -> llm_pb2.GenerateTextRequest:
    return llm_pb2.GenerateTextRequest(
        prompt="the cat",
        stopping=llm_pb2.Stopping(ignore_eos=True),
        response_options=llm_pb2.ResponseOptions(tokens=True),
        **fields,
    )


async def test_the_first_token_and_the_end_come_at_once(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, server=NEVER) as (_, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        call = stub.StreamGenerateText(asking(max_tokens=20), timeout=HANG_S)
        await runner.at_run()
        await runner.next_run()  # one token is there, and the engine stands still
        messages = aiter(call)
        first = await anext(messages)
        runner.open()
        rest = [message async for message in messages]
    assert isinstance(first, Response)
    assert len(first.tokens) == 1
    assert [len(message.tokens) for message in rest] == [19]
    assert rest[0].finish_reason == llm_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("stops", [(), ("e",)])
async def test_the_answer_is_the_same(serve: Serve, stops: tuple[str, ...]) -> None:
    request = asking(max_tokens=40)
    request.stopping.stop_strings.extend(stops)
    request.cache.disabled = True  # usage tells what the first of two equal requests left
    answers = []
    for settings in ({}, NEVER):
        async with serve(ScriptedRunner(), server=settings) as (_, channel):
            stub = llm_pb2_grpc.LLMServiceStub(channel)
            whole = await stub.GenerateText(request, timeout=HANG_S)
            parts = [part async for part in stub.StreamGenerateText(request, timeout=HANG_S)]
        assert "".join(part.generated_text for part in parts) == whole.generated_text
        assert [token.id for part in parts for token in part.tokens] == [t.id for t in whole.tokens]
        assert parts[-1].usage == whole.usage
        assert [part.sequence for part in parts] == list(range(len(parts)))
        answers.append(whole)
        if settings:
            assert len(parts) <= 2
    assert answers[0] == answers[1]


def test_a_server_sends_two_messages_where_it_sent_many(embedded: ServerProcess) -> None:
    request = asking(max_tokens=60)
    with ServerProcess("--stream-interval-ms=60000") as paced:
        paced_parts = read(paced, request)
    parts = read(embedded, request)
    assert len(paced_parts) <= 2 < len(parts)
    assert text(paced_parts) == text(parts)
    assert ids(paced_parts) == ids(parts)
    assert len(ids(parts)) == 60


def read(server: ServerProcess, request: llm_pb2.GenerateTextRequest) -> list[Response]:
    with server.channel() as channel:
        return list(llm_pb2_grpc.LLMServiceStub(channel).StreamGenerateText(request, timeout=HANG_S))


def text(parts: list[Response]) -> str:
    return "".join(part.generated_text for part in parts)


def ids(parts: list[Response]) -> list[int]:
    return [token.id for part in parts for token in part.tokens]
