"""Whether tools may, must or must not be called, and the form that a call which must come is held to."""

from __future__ import annotations

import json
from collections.abc import Collection

from llm_grpc.errors import InvalidParameter
from llm_grpc.server.conversations import names_of, template_of, tool_schema
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.tool_grammar import ToolSchema, tool_grammar
from llm_grpc.v1 import chat_pb2, llm_pb2

_MUST = (chat_pb2.TOOL_CHOICE_MODE_REQUIRED, chat_pb2.TOOL_CHOICE_MODE_NAMED)


def may_call(request: llm_pb2.ChatRequest) -> bool:
    """Whether the model is told of tools. Checks ``tool_choice`` and what goes with it.

    Raises:
        InvalidParameter: the choice is none, or does not go with the request's other fields.
    """
    choice, tools = request.tool_choice, request.tools
    if choice.mode not in chat_pb2.ToolChoiceMode.values():
        last = max(chat_pb2.ToolChoiceMode.values())
        raise InvalidParameter("tool_choice.mode", f"is {choice.mode}, and must be 0 to {last}")
    mode = chat_pb2.ToolChoiceMode.Name(choice.mode)
    if choice.mode in _MUST and not tools:
        raise InvalidParameter("tool_choice.mode", f"is {mode}, and tools is empty")
    _check_name(choice, names_of(tools), mode)
    told = bool(tools) and choice.mode != chat_pb2.TOOL_CHOICE_MODE_NONE
    if told and request.HasField("constraint"):
        raise InvalidParameter(
            "constraint", f"must not be set where tools may be called: tools has {len(tools)} and "
            f"tool_choice.mode is {mode}"
        )  # fmt: skip
    return told


def call_form(request: llm_pb2.ChatRequest, model: ServedModel) -> str:
    """What holds the answer to calls, as ``Constraints.compile`` takes it; empty where none must come."""
    form, choice = template_of(model).tool_format, request.tool_choice
    if form is None or choice.mode not in _MUST:
        return ""
    tools = [
        ToolSchema(tool.name, f"tools[{at}].parameters", tool_schema(tool, f"tools[{at}]"))
        for at, tool in enumerate(request.tools)
        if choice.name in ("", tool.name)
    ]
    grammar = tool_grammar(form, tools, model.tokenizer, only_one=bool(choice.name))
    return json.dumps([grammar, [[tool.field, tool.arguments] for tool in tools]], ensure_ascii=False)


def _check_name(choice: chat_pb2.ToolChoice, names: Collection[str], mode: str) -> None:
    is_named = choice.mode == chat_pb2.TOOL_CHOICE_MODE_NAMED
    if is_named and choice.name not in names:
        raise InvalidParameter("tool_choice.name", f"is {choice.name!r}, and tools has none of that name")
    if choice.name and not is_named:
        raise InvalidParameter("tool_choice.name", f"must be empty where tool_choice.mode is {mode}")
