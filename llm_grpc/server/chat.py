"""Chat: the conversation becomes a prompt, the text becomes a message."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import NamedTuple

from llm_grpc.errors import InvalidParameter
from llm_grpc.sampling_params import FinishReason
from llm_grpc.server.calls import Call
from llm_grpc.server.constraints import to_call_constraint, to_constraint
from llm_grpc.server.conversations import names_of, template_of, to_conversation
from llm_grpc.server.fields import beside_if_large, copy_shared_fields, refuse_unknown_fields
from llm_grpc.server.models import Models
from llm_grpc.server.requests import to_text_request
from llm_grpc.server.responses import to_response
from llm_grpc.server.served_model import ServedModel
from llm_grpc.server.tool_choice import call_form, may_call
from llm_grpc.text.chat_template import Conversation
from llm_grpc.text.text_delta import TextDelta
from llm_grpc.text.text_request import NewConstraint, TextRequest
from llm_grpc.text.tool_calls import Parsed, ToolCall, ToolCallParser
from llm_grpc.text.tool_format import ToolFormat
from llm_grpc.v1 import chat_pb2, llm_pb2

_PLACES = ("index", "sequence")
"""Fields that say where a message stands: one with nothing else says nothing."""

_UNTOLD = "-"
"""Stands for the prompt while the other fields are checked: no template runs for a request that fails."""


async def whole_chat(
    request: llm_pb2.ChatRequest, models: Models, call: Call
) -> AsyncGenerator[llm_pb2.ChatResponse, None]:
    """The one answer of Chat: the messages of the stream joined."""
    async with aclosing(chat_parts(request, models, call)) as parts:
        yield joined_chat([part async for part in parts], several=request.sampling.n > 1)


async def chat_parts(
    request: llm_pb2.ChatRequest, models: Models, call: Call
) -> AsyncGenerator[llm_pb2.ChatResponse, None]:
    """Yield the messages of StreamChat.

    Raises:
        RequestError: as ``to_text_request``, ``to_conversation``, ``to_constraint`` and
            ``TextGenerator.generate`` say; what they say of a prompt is said of the messages.
    """
    model = models.get(request.model)
    checked = await beside_if_large(request, lambda: _checked(request, model))
    template = template_of(model)
    form = template.tool_format if checked.conversation.tools else None
    if checked.call_form:
        constraint: NewConstraint | None = await to_call_constraint(checked.call_form, request, model)
    else:
        constraint = await to_constraint(request, model)
    asked = replace(
        call.asked(checked.asked),
        prompt=await template.prompt(checked.conversation),
        adds_special_tokens=False,
        shown_tokens=model.tokenizer.special_ids(form.markers if form else ()),
        constraint=constraint,
    )
    answer = _Answer(checked.common, model, form, names_of(request.tools))
    with _said_of_messages():
        async with aclosing(model.generator.generate(asked)) as deltas:
            async for delta in deltas:
                response = answer.push(delta)
                if response:
                    yield response


def joined_chat(parts: Sequence[llm_pb2.ChatResponse], *, several: bool) -> llm_pb2.ChatResponse:
    """The answer of Chat: the messages of StreamChat put together, with ``choices`` where there are several
    sequences.
    """
    by_index: defaultdict[int, list[llm_pb2.ChatResponse]] = defaultdict(list)
    for part in parts:
        by_index[part.index].append(part)
    wholes = [_joined(by_index[index]) for index in sorted(by_index)]
    if several:
        for whole in wholes:
            copy_shared_fields(whole, wholes[0].choices.add())
    return wholes[0]


class _Checked(NamedTuple):
    """A request that is within all limits: what it has of a request for text, and what its template makes the
    prompt of. ``call_form`` holds the answer to calls, where some must come.
    """

    common: llm_pb2.GenerateTextRequest
    asked: TextRequest
    conversation: Conversation
    call_form: str


def _checked(request: llm_pb2.ChatRequest, model: ServedModel) -> _Checked:
    is_told_of_tools = may_call(request)
    conversation = to_conversation(request.messages, request.tools, request.template_options, model)
    refuse_unknown_fields(request)
    common = llm_pb2.GenerateTextRequest()
    copy_shared_fields(request, common)
    common.prompt = _UNTOLD
    told = conversation if is_told_of_tools else conversation._replace(tools=None)
    return _Checked(common, to_text_request(common, model), told, call_form(request, model))


@contextmanager
def _said_of_messages() -> Iterator[None]:
    """Let errors about the prompt, which the caller has not set, be about the messages it is made of."""
    try:
        yield
    except InvalidParameter as error:
        raise (type(error)("messages", error.problem) if error.field == "prompt" else error) from None


class _Answer:
    """Turns the deltas of one request into messages; ``form`` is None where no tools may be called."""

    def __init__(
        self,
        request: llm_pb2.GenerateTextRequest,
        model: ServedModel,
        form: ToolFormat | None,
        tools: Collection[str],
    ) -> None:
        self._request = request
        self._model = model
        self._form = form
        self._tools = tools
        self._parsers: dict[int, ToolCallParser] = {}
        self._callers: set[int] = set()
        self._sequence = 0

    def push(self, delta: TextDelta) -> llm_pb2.ChatResponse | None:
        """The message of one delta, None where it has nothing to say yet."""
        content, calls = self._parse(delta) if self._form else Parsed(delta.text)
        reason = delta.finish_reason
        if delta.index in self._callers and reason in (FinishReason.EOS, FinishReason.STOP):
            reason = FinishReason.TOOL_CALLS
        delta = delta._replace(text=content, finish_reason=reason)
        response = to_response(delta, self._sequence, self._request, self._model)
        if not calls and all(field.name in _PLACES for field, _ in response.ListFields()):
            return None
        self._sequence += 1
        return _message(response, content, calls)

    def _parse(self, delta: TextDelta) -> Parsed:
        assert self._form
        if delta.index not in self._parsers:
            self._parsers[delta.index] = ToolCallParser(self._form, self._tools)
        parser = self._parsers[delta.index]
        parsed = parser.push(delta.text)
        if delta.finish_reason:
            rest = parser.finish()
            parsed = Parsed(parsed.content + rest.content, parsed.calls + rest.calls)
        if parsed.calls:
            self._callers.add(delta.index)
        return parsed


def _message(
    response: llm_pb2.GenerateTextResponse, content: str, calls: Sequence[ToolCall]
) -> llm_pb2.ChatResponse:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, content=content)
    for call in calls:
        message.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)
    found = llm_pb2.ChatResponse(message=message)
    copy_shared_fields(response, found)
    return found


def _joined(parts: Sequence[llm_pb2.ChatResponse]) -> llm_pb2.ChatResponse:
    whole = llm_pb2.ChatResponse()
    for part in parts:
        whole.MergeFrom(part)  # the last of single values, all of repeated ones
    whole.message.content = "".join(part.message.content for part in parts)
    whole.sequence = 0
    return whole
