"""Which calls a choice makes the model write, as a grammar."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llm_grpc.server.served_model import ServedModel
from llm_grpc.server.tool_choice import call_form, may_call
from llm_grpc.text.chat_template import ChatTemplate
from llm_grpc.v1 import chat_pb2
from llm_grpc.v1.chat_pb2 import Tool
from llm_grpc.v1.chat_pb2 import ToolChoice as Choice
from llm_grpc.v1.llm_pb2 import ChatRequest
from tests.unit.small_tokenizers import byte_level

TOOLS = [Tool(name="weather"), Tool(name="clock")]
AUTO, NONE = chat_pb2.TOOL_CHOICE_MODE_AUTO, chat_pb2.TOOL_CHOICE_MODE_NONE
REQUIRED, NAMED = chat_pb2.TOOL_CHOICE_MODE_REQUIRED, chat_pb2.TOOL_CHOICE_MODE_NAMED


@pytest.fixture
def model() -> ServedModel:
    template = ChatTemplate("{{ tools }}<tool_call>", {})
    parts: Any = SimpleNamespace(name="m", chat_template=template, tokenizer=byte_level())
    return cast("ServedModel", parts)


def asked(mode: Any, name: str = "") -> ChatRequest:
    return ChatRequest(tools=TOOLS, tool_choice=Choice(mode=mode, name=name))


def test_a_call_that_may_come_is_held_to_nothing(model: ServedModel) -> None:
    for mode in (AUTO, NONE, chat_pb2.TOOL_CHOICE_MODE_UNSPECIFIED):
        assert call_form(asked(mode), model) == ""


def test_a_call_that_must_come_is_held_to_the_tools(model: ServedModel) -> None:
    required, named = call_form(asked(REQUIRED), model), call_form(asked(NAMED, "clock"), model)
    grammar, schemas = json.loads(required)
    assert grammar.startswith('start: "<tool_call>"')
    assert "weather" in grammar
    assert "clock" in grammar
    assert [field for field, _ in schemas] == ["tools[0].parameters", "tools[1].parameters"]
    grammar, schemas = json.loads(named)
    assert "weather" not in grammar
    assert "clock" in grammar
    assert schemas == [["tools[1].parameters", {"type": "object", "properties": {}}]]


def test_whether_the_model_is_told() -> None:
    assert [may_call(asked(mode)) for mode in (AUTO, REQUIRED, NONE)] == [True, True, False]
    assert may_call(asked(NAMED, "clock"))
    assert not may_call(ChatRequest())
