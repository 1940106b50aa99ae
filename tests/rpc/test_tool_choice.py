"""Calls that must come: the answer is one, whatever the model would rather say."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2

from llm_grpc.engine.step_plan import Sample
from llm_grpc.v1 import chat_pb2, llm_pb2, llm_pb2_grpc
from llm_grpc.v1.chat_pb2 import ROLE_USER, ChatMessage, Tool
from llm_grpc.v1.chat_pb2 import ToolChoice as Choice
from llm_grpc.v1.llm_pb2 import ChatRequest, ChatResponse
from tests.rpc.conftest import Serve
from tests.rpc.models import EOS, write_model_dir
from tests.rpc.process import HANG_S
from tests.rpc.test_bad_input import details
from tests.unit.scripted_runner import ScriptedRunner

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>")
VOCABULARY = 257 + len(MARKS)
REQUIRED = Choice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)
NAMED = Choice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name="weather")
USER = ChatMessage(role=ROLE_USER, content="hi")
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 14}},
}
CLOCK: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}


class Rambling(ScriptedRunner):
    """Would say any token of the vocabulary; of those that may come it says one. Each seed says others."""

    def _choose(self, sample: Sample, history: list[int]) -> int:
        bits = sample.mask.wait() if sample.mask else None
        come = [
            token
            for token in range(VOCABULARY)
            if token not in sample.banned and (bits is None or bits[token // 32] >> token % 32 & 1)
        ]
        number = zlib.crc32(repr([sample.params.seed, *history]).encode())
        return EOS if EOS in come and number % 3 == 0 else come[number % len(come)]


def tool(name: str, schema: dict[str, Any]) -> Tool:
    return json_format.ParseDict({"name": name, "parameters": schema}, Tool())


TOOLS = [tool(name, schema) for name, schema in SCHEMAS.items()]


def asked(choice: Choice, n: int = 1, **fields: Any) -> ChatRequest:
    sampling = llm_pb2.Sampling(temperature=1.0, seed=3, n=n)
    merged: dict[str, Any] = {"messages": [USER], "tools": TOOLS, "sampling": sampling, "max_tokens": 600}
    return ChatRequest(tool_choice=choice, **{**merged, **fields})


def model_that_shows(directory: Path, sign: str) -> Path:
    template = f"{{%- if tools %}}{{{{ tools | tojson }}}}{sign}{{% endif %}}{{{{ messages[0].content }}}}"
    return write_model_dir(directory, context_tokens=2048, chat_template=template, special_tokens=MARKS)


def check_calls(message: ChatMessage, names: set[str]) -> None:
    assert message.tool_calls
    assert not message.content
    for call in message.tool_calls:
        assert call.name in names
        jsonschema.Draft202012Validator(SCHEMAS[call.name]).validate(json.loads(call.arguments))


@pytest.mark.parametrize(
    "sign", ["<tool_call>", "[TOOL_CALLS]", "[TOOL_CALLS][ARGS]", "<|tool_call|>", '"parameters": ']
)
@pytest.mark.parametrize("choice", [REQUIRED, NAMED], ids=["required", "named"])
async def test_calls_come_typed_and_valid(serve: Serve, tmp_path: Path, sign: str, choice: Choice) -> None:
    names = {"weather"} if choice is NAMED else set(SCHEMAS)
    async with serve(Rambling(), model=model_that_shows(tmp_path, sign)) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        answer = await stub.Chat(asked(choice, n=4), timeout=HANG_S)
        parts = [part async for part in stub.StreamChat(asked(choice, n=4), timeout=HANG_S)]
        assert server.admission.held == 0
    assert len(answer.choices) == 4
    for sequence in answer.choices:
        check_calls(sequence.message, names)
        assert sequence.finish_reason == llm_pb2.FINISH_REASON_TOOL_CALLS
        if choice is NAMED:
            assert len(sequence.message.tool_calls) == 1
        mine = [part.message for part in parts if part.index == sequence.index]
        streamed = [(call.name, call.arguments) for message in mine for call in message.tool_calls]
        assert streamed == [(call.name, call.arguments) for call in sequence.message.tool_calls]


BAD = [
    (
        asked(REQUIRED, tools=[TOOLS[1], tool("weather", {**WEATHER, "uniqueItems": True})]),
        "tools[1].parameters",
        "uniqueItems",
    ),
    (
        asked(NAMED, tools=[TOOLS[1], tool("weather", {"$ref": "#/$defs/none"})]),
        "tools[1].parameters",
        "none",
    ),
    (asked(REQUIRED, stopping=llm_pb2.Stopping(min_tokens=1)), "tool_choice.mode", "stopping.min_tokens"),
    (asked(REQUIRED, tools=[tool("weather", {"title": "a" * 70_000})]), "tools", "the limit is 65536"),
]


@pytest.mark.parametrize(("request_", "field", "problem"), BAD, ids=lambda value: str(value)[-30:])
async def test_what_cannot_be_held_to_is_named(
    serve: Serve, tmp_path: Path, request_: ChatRequest, field: str, problem: str
) -> None:
    async with serve(Rambling(), model=model_that_shows(tmp_path, "<tool_call>")) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Chat(request_, timeout=HANG_S)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        violation = details(error.value, error_details_pb2.BadRequest).field_violations[0]
        assert violation.field == field
        assert problem in violation.description


async def test_another_tools_schema_does_not_matter_where_one_is_named(serve: Serve, tmp_path: Path) -> None:
    tools = [tool("clock", {"uniqueItems": True}), TOOLS[0]]
    async with serve(Rambling(), model=model_that_shows(tmp_path, "<tool_call>")) as (_, channel):
        answer: ChatResponse = await llm_pb2_grpc.LLMServiceStub(channel).Chat(
            asked(NAMED, tools=tools), timeout=HANG_S
        )
    check_calls(answer.message, {"weather"})
