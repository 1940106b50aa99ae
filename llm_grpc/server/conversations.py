"""From the contract's messages and tools to what a chat template takes, with the checks of every field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from llm_grpc.errors import InvalidParameter, PromptTooLong, UnsupportedParameter
from llm_grpc.server.fields import number
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text import strict_json
from llm_grpc.text.chat_template import ChatTemplate, Conversation
from llm_grpc.v1 import chat_pb2

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
    chat_pb2.ROLE_DEVELOPER: "developer",
}

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_FIRST_MEMBERS = ("type", "name", "description", "properties", "required")
"""Members of a JSON schema in the order in which templates' authors wrote them. A Struct has no order."""


def template_of(model: ServedModel) -> ChatTemplate:
    """The model's chat template. Raises UnsupportedParameter where it has none."""
    if model.chat_template is None:
        raise UnsupportedParameter(f"messages: the model {model.name!r} has no chat template")
    return model.chat_template


def to_conversation(
    messages: Sequence[chat_pb2.ChatMessage],
    tools: Sequence[chat_pb2.Tool],
    options: Struct,
    model: ServedModel,
    path: str = "",
) -> Conversation:
    """What the model's template makes a prompt of; ``path`` is written before the names of fields.

    Raises:
        InvalidParameter: a field is out of its limits.
        PromptTooLong: there are more messages than a prompt has tokens.
        UnsupportedParameter: the model has no template, or there are tools that it does not show or whose
            calls this version cannot read.
    """
    template = template_of(model)
    if not messages:
        raise InvalidParameter(f"{path}messages", "must not be empty")
    if len(messages) > model.max_prompt_tokens:
        limit = f"a prompt has at most {model.max_prompt_tokens} tokens"
        raise PromptTooLong(f"{path}messages", f"has {len(messages)} messages, and {limit}")
    dicts = [_message(message, f"{path}messages[{at}]") for at, message in enumerate(messages)]
    return Conversation(
        dicts, _tools(tools, template, f"{path}tools"), _options(options, template, f"{path}template_options")
    )


def _message(message: chat_pb2.ChatMessage, path: str) -> dict[str, Any]:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidParameter(f"{path}.role", f"is {message.role}, and must be 1 to {max(_ROLES)}")
    found: dict[str, Any] = {"role": role, "content": message.content}
    if message.tool_calls:
        if message.role != chat_pb2.ROLE_ASSISTANT:
            raise InvalidParameter(f"{path}.tool_calls", f"must be empty where the role is {role}")
        calls = enumerate(message.tool_calls)
        found["tool_calls"] = [_tool_call(call, f"{path}.tool_calls[{at}]") for at, call in calls]
    if message.tool_call_id:
        if message.role != chat_pb2.ROLE_TOOL:
            raise InvalidParameter(f"{path}.tool_call_id", f"must be empty where the role is {role}")
        found["tool_call_id"] = message.tool_call_id
    if message.name:
        found["name"] = message.name
    return found


def _tool_call(call: chat_pb2.ToolCall, path: str) -> dict[str, Any]:
    _check_name(call.name, f"{path}.name")
    try:
        arguments = strict_json.parsed(call.arguments)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"{path}.arguments", f"is no JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise InvalidParameter(f"{path}.arguments", "must be a JSON object")
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", **({"id": call.id} if call.id else {}), "function": function}


def _tools(tools: Sequence[chat_pb2.Tool], template: ChatTemplate, path: str) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    names: set[str] = set()
    for at, tool in enumerate(tools):
        _check_name(tool.name, f"{path}[{at}].name")
        if tool.name in names:
            raise InvalidParameter(f"{path}[{at}].name", f"is {tool.name!r}, as that of a tool before it")
        names.add(tool.name)
    if not template.shows_tools:
        raise UnsupportedParameter(f"{path}: the model's chat template does not show tools to it")
    if template.tool_format is None:
        raise UnsupportedParameter(f"{path}: this version cannot read how the model calls them")
    return [_tool(tool, f"{path}[{at}]") for at, tool in enumerate(tools)]


def _tool(tool: chat_pb2.Tool, path: str) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = tool_schema(tool, path)
    return {"type": "function", "function": function}


def tool_schema(tool: chat_pb2.Tool, path: str) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, in an order that is the same each time."""
    if not tool.HasField("parameters"):
        return {"type": "object", "properties": {}}
    found = _object(tool.parameters, f"{path}.parameters")
    if found.get("type", "object") != "object":
        raise InvalidParameter(f"{path}.parameters.type", f'is {found["type"]!r}, and must be "object"')
    return found


def _options(options: Struct, template: ChatTemplate, path: str) -> dict[str, Any]:
    for name in options.fields:
        if template.is_taken(name):
            raise InvalidParameter(f"{path}.{name}", "is a name that the template has already")
        if not name.isidentifier():
            raise InvalidParameter(path, f"has the name {name!r}, which no template can use")
    return _object(options, path)


def _object(struct: Struct, path: str) -> dict[str, Any]:
    names = sorted(struct.fields, key=_place)
    return {name: _value(struct.fields[name], f"{path}.{name}") for name in names}


def _place(name: str) -> tuple[int, str]:
    known = name in _FIRST_MEMBERS
    return (_FIRST_MEMBERS.index(name) if known else len(_FIRST_MEMBERS)), name


def _value(value: Value, path: str) -> Any:
    """A JSON value; a whole number is an int, as JSON's own parser makes it."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _object(value.struct_value, path)
    if kind == "list_value":
        return [_value(each, f"{path}[{at}]") for at, each in enumerate(value.list_value.values)]
    if kind == "number_value":
        if not math.isfinite(value.number_value):
            raise InvalidParameter(path, f"is {number(value.number_value)}, which JSON does not have")
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    return getattr(value, kind) if kind in ("string_value", "bool_value") else None


def _check_name(name: str, path: str) -> None:
    if not _TOOL_NAME.fullmatch(name):
        limit = "1 to 64 letters, digits, underscores, dots and dashes"
        raise InvalidParameter(path, f"is {name!r}, and must be {limit}")


def names_of(tools: Iterable[chat_pb2.Tool]) -> frozenset[str]:
    """The names of ``tools``."""
    return frozenset(tool.name for tool in tools)
