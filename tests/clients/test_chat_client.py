"""Conversations and tokens through both Python clients, against a server that is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from llm_grpc.client import AsyncClient, Client, InvalidRequest
from llm_grpc.client.chat import MessageDict, chat_request, tokenize_request
from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.v1 import chat_pb2, llm_pb2
from tests.clients.test_python_client import Do, async_do, sync_do
from tests.rpc.process import ServerProcess

DIALOGUE: list[MessageDict] = [
    {"role": "user", "content": "Hello, my name is Tom. I live in Dublin and I like rice."},
    {"role": "assistant", "content": "Hello Tom, nice to meet you."},
    {"role": "user", "content": "Where do I live?"},
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ServerProcess(f"--model={EMBEDDED_MODEL}") as process:
        yield process.address


@pytest.fixture(params=[sync_do, async_do], ids=["sync", "async"])
def do(request: pytest.FixtureRequest) -> Do:
    chosen: Do = request.param
    return chosen


def test_chat(do: Do, address: str) -> None:
    answer = do(address, "chat", DIALOGUE, max_tokens=32)
    assert "Dublin" in answer.message.content
    assert answer.finish_reason == llm_pb2.FINISH_REASON_EOS
    again = do(
        address, "chat", [*DIALOGUE, answer.message, {"role": "user", "content": "Why?"}], max_tokens=3
    )
    assert again.usage.completion_tokens == 3


def test_stream_chat(address: str) -> None:
    async def read() -> list[str]:
        async with AsyncClient(address) as client, client.stream_chat(DIALOGUE, max_tokens=32) as stream:
            return [part.message.content async for part in stream]

    with Client(address) as client, client.stream_chat(DIALOGUE, max_tokens=32) as stream:
        parts = [part.message.content for part in stream]
    assert "".join(parts) == "".join(asyncio.run(read()))
    assert "Dublin" in "".join(parts)


def test_tokens(do: Do, address: str) -> None:
    found = do(address, "tokenize", "The cat.", add_special_tokens=False)
    assert do(address, "detokenize", [token.id for token in found.tokens]) == "The cat."
    assert do(address, "tokenize", DIALOGUE).prompt.startswith("<|user|>Hello")
    counted = do(address, "tokenize", DIALOGUE, count_only=True, truncate_tokens=4)
    assert (counted.count, len(counted.tokens)) == (4, 0)
    assert do(address, "detokenize", [1], keep_special_tokens=True) == "<|user|>"


def test_an_error_names_the_field(do: Do, address: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        do(address, "chat", [])
    assert error.value.field_violations[0].field == "messages"


def test_all_of_a_conversation_is_sent() -> None:
    call: Any = {"id": "x", "name": "weather", "arguments": "{}"}
    messages: Any = [
        {"role": "developer", "content": "Be short."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "sun", "tool_call_id": "x", "name": "weather"},
    ]
    tool: Any = {"name": "weather", "description": "d", "parameters": {"type": "object", "n": 1}}
    request = chat_request(
        messages,
        {
            "tools": [tool],
            "tool_choice": {"name": "weather"},
            "template_options": {"enable_thinking": False},
            "temperature": 0.5,
            "max_tokens": 7,
            "model": "m",
            "stop": ["x"],
        },
    )
    assert [message.role for message in request.messages] == [5, 3, 4]
    assert request.messages[1].tool_calls[0] == chat_pb2.ToolCall(id="x", name="weather", arguments="{}")
    assert (request.messages[2].tool_call_id, request.messages[2].name) == ("x", "weather")
    assert request.tools[0].parameters["n"] == 1
    assert request.tool_choice == chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name="weather")
    assert request.template_options["enable_thinking"] is False
    assert (request.sampling.temperature, request.max_tokens, request.model) == (0.5, 7, "m")
    assert list(request.stopping.stop_strings) == ["x"]


def test_what_is_not_asked_for_is_not_sent() -> None:
    request = chat_request([{"role": "user", "content": "hi"}], {"tool_choice": "none"})
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="hi")
    choice = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NONE)
    assert request == llm_pb2.ChatRequest(messages=[message], tool_choice=choice)
    assert tokenize_request("", {}).WhichOneof("input") == "text"
    assert not tokenize_request([], {}).HasField("add_special_tokens")


@pytest.mark.parametrize(
    ("messages", "options", "kind", "says"),
    [
        ([{"role": "nobody"}], {}, ValueError, r"messages\[0\]\.role: 'nobody' is no role"),
        ([{"content": "x"}], {}, ValueError, r"messages\[0\]\.role: '' is no role"),
        ([{"role": "user", "text": "x"}], {}, ValueError, r"messages\[0\]: .*text"),
        ([{"role": "user", "content": 3}], {}, ValueError, r"messages\[0\]: .*content"),
        ([], {"tools": [{"nme": "x"}]}, ValueError, r"tools\[0\]: .*nme"),
        ([], {"tool_choice": "always"}, ValueError, "'always' is none of auto, none, required"),
        ([], {"surprise": 1}, TypeError, "unknown options: surprise"),
        ([], {"max_tokens": 2**40}, ValueError, "max_tokens"),
        ([], {"template_options": {"a": {1, 2}}}, ValueError, "template_options"),
    ],
)
def test_what_cannot_be_sent(messages: Any, options: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        chat_request(messages, options)


def test_a_text_has_no_tools() -> None:
    with pytest.raises(TypeError, match="go with messages"):
        tokenize_request("x", {"tools": [{"name": "x"}]})
    with pytest.raises(TypeError, match="unknown options: tool"):
        tokenize_request("x", {"tool": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ValueError, match="truncate_tokens"):
        tokenize_request("x", {"truncate_tokens": 2**40})
