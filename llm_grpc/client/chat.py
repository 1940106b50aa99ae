"""From Python's own values to the messages of conversations and tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

from google.protobuf import json_format
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.struct_pb2 import Struct

from llm_grpc.client.options import GenerateOptions
from llm_grpc.client.requests import extend_field, generate_request, refuse_unknown_options, set_field
from llm_grpc.v1 import chat_pb2, llm_pb2, tokenizer_pb2


class ToolCallDict(TypedDict, total=False):
    """A call of a tool; `arguments` are a JSON object as text."""

    id: str
    name: Required[str]
    arguments: Required[str]


class MessageDict(TypedDict, total=False):
    """One message of a conversation."""

    role: Required[Literal["system", "user", "assistant", "tool", "developer"]]
    content: str
    tool_calls: Sequence[ToolCallDict | chat_pb2.ToolCall]
    tool_call_id: str
    name: str


class ToolDict(TypedDict, total=False):
    """A function that the model may ask for; `parameters` is the JSON schema of its arguments."""

    name: Required[str]
    description: str
    parameters: Mapping[str, Any]


class NamedTool(TypedDict):
    """The choice of the one tool that must be called."""

    name: str


Message = MessageDict | chat_pb2.ChatMessage
"""A message as a dictionary, or one that a server has answered."""

Tool = ToolDict | chat_pb2.Tool
ToolChoice = Literal["auto", "none", "required"] | NamedTool


class ChatOptions(GenerateOptions, total=False):
    """What a conversation may ask for besides its messages."""

    tools: Sequence[Tool]
    """What the model may call."""

    tool_choice: ToolChoice
    """Whether it may, must not or must, or the tool that it must call; left out, the model decides."""

    template_options: Mapping[str, Any]
    """Names that the model's chat template knows, for instance {"enable_thinking": False}."""


def chat_request(messages: Sequence[Message], options: ChatOptions) -> llm_pb2.ChatRequest:
    """Build a request. Ranges are the server's to check.

    Raises:
        ValueError: a value does not fit its field on the wire; the message names the field.
        TypeError: a value is of another type, or an option is unknown.
    """
    rest: Any = {name: value for name, value in options.items() if name in GenerateOptions.__annotations__}
    refuse_unknown_options(options, ChatOptions)
    request = llm_pb2.ChatRequest()
    for field, value in generate_request("", rest).ListFields():
        if field.name not in request.DESCRIPTOR.fields_by_name:
            raise TypeError(f"{field.name} does not go with messages")
        if isinstance(value, ProtoMessage):
            getattr(request, field.name).CopyFrom(value)
        else:
            setattr(request, field.name, value)
    _fill(request, messages, options.get("tools", ()), options.get("template_options"))
    if choice := options.get("tool_choice"):
        _choose(request.tool_choice, choice)
    return request


class TokenizeOptions(TypedDict, total=False):
    """What may be said about the tokens of a text or of a conversation."""

    tools: Sequence[Tool]
    """What the model may call, with a conversation."""

    template_options: Mapping[str, Any]
    """Names that the model's chat template knows, with a conversation."""

    add_special_tokens: bool
    """Whether the model's special tokens are added to a text; left out, they are."""

    truncate_tokens: int
    """Most tokens to keep, the last ones; 0 keeps all."""

    count_only: bool
    """Leave all but the count out."""

    model: str
    """Name of the model; empty is the server's default."""


def tokenize_request(
    text: str | Sequence[Message], options: TokenizeOptions
) -> tokenizer_pb2.TokenizeRequest:
    """Build a request of a text or of a conversation; errors are those of ``chat_request``."""
    refuse_unknown_options(options, TokenizeOptions)
    tools, template_options = options.get("tools", ()), options.get("template_options")
    request = tokenizer_pb2.TokenizeRequest()
    given: dict[str, Any] = {**options}
    for field in ("add_special_tokens", "truncate_tokens", "count_only", "model"):
        set_field(request, field, given.get(field))
    if not isinstance(text, str):
        request.chat.SetInParent()
        _fill(request.chat, text, tools, template_options)
    elif tools or template_options:
        raise TypeError("tools and template_options go with messages, not with a text")
    else:
        set_field(request, "text", text)
    return request


def detokenize_request(
    token_ids: Sequence[int], *, keep_special_tokens: bool, model: str
) -> tokenizer_pb2.DetokenizeRequest:
    """Build a request; errors are those of ``chat_request``."""
    request = tokenizer_pb2.DetokenizeRequest(keep_special_tokens=keep_special_tokens)
    set_field(request, "model", model)
    extend_field(request, "token_ids", token_ids)
    return request


def _fill(
    request: llm_pb2.ChatRequest | tokenizer_pb2.ChatInput,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    options: Mapping[str, Any] | None,
) -> None:
    for at, message in enumerate(messages):
        request.messages.append(_message(message, f"messages[{at}]"))
    for at, tool in enumerate(tools):
        request.tools.append(_parsed(tool, chat_pb2.Tool, f"tools[{at}]"))
    if options:
        request.template_options.CopyFrom(_parsed(options, Struct, "template_options"))


def _message(message: Message, path: str) -> chat_pb2.ChatMessage:
    if isinstance(message, chat_pb2.ChatMessage):
        return message
    fields: dict[str, Any] = {**message}
    role = str(fields.pop("role", ""))
    try:
        number = chat_pb2.Role.Value(f"ROLE_{role.upper()}")
    except ValueError:
        raise ValueError(f"{path}.role: {role!r} is no role") from None
    calls = [
        _parsed(call, chat_pb2.ToolCall, f"{path}.tool_calls[{at}]")
        for at, call in enumerate(fields.pop("tool_calls", ()))
    ]
    found: chat_pb2.ChatMessage = _parsed(fields, chat_pb2.ChatMessage, path)
    found.role = number
    found.tool_calls.extend(calls)
    return found


def _parsed(value: Any, kind: type[Any], path: str) -> Any:
    """A message of a dictionary, or the message itself."""
    if isinstance(value, kind):
        return value
    try:
        return json_format.ParseDict(dict(value), kind())
    except (json_format.ParseError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _choose(target: chat_pb2.ToolChoice, choice: ToolChoice) -> None:
    if isinstance(choice, str):
        try:
            target.mode = chat_pb2.ToolChoiceMode.Value(f"TOOL_CHOICE_MODE_{choice.upper()}")
        except ValueError:
            raise ValueError(f"tool_choice: {choice!r} is none of auto, none, required") from None
    else:
        target.mode, target.name = chat_pb2.TOOL_CHOICE_MODE_NAMED, choice["name"]
