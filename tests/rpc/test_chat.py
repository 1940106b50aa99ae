"""Chat: the embedded model's dialogues, and tools with a runner that says what a test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llm_grpc.v1 import chat_pb2, llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc, tokenizer_pb2
from llm_grpc.v1 import tokenizer_pb2_grpc as tokenizer_grpc
from llm_grpc.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ChatMessage,
    Tool,
    ToolCall,
)
from llm_grpc.v1.chat_pb2 import ToolChoice as Choice
from llm_grpc.v1.llm_pb2 import ChatRequest, ChatResponse
from tests.rpc.conftest import Serve
from tests.rpc.models import EOS, write_model_dir
from tests.rpc.process import ServerProcess
from tests.rpc.test_bad_input import details
from tests.unit.scripted_runner import ScriptedRunner

MARKS = ("<tool_call>", "</tool_call>", "<|answer|>")
TEMPLATE = """\
{%- if tools %}{% for tool in tools %}{{ tool.function | tojson }}{% endfor %}<tool_call>{% endif %}
{%- for m in messages %}
    {%- if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}
    {{- m.role[0] + m.content }}
    {%- for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
{%- endfor %}{{ mood or '' }}<|answer|>"""
CONTEXT_TOKENS = 1024
USER = ChatMessage(role=ROLE_USER, content="hi")
WEATHER = Tool(name="weather", description="Tells it.")
json_format.ParseDict(
    {"type": "object", "required": ["city"], "properties": {"city": {"maxLength": 9, "type": "string"}}},
    WEATHER.parameters,
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
FRESH = llm_pb2.Cache(disabled=True)


def user(content: str) -> ChatMessage:
    return ChatMessage(role=ROLE_USER, content=content)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes, and special tokens around calls, as models have them."""
    directory = tmp_path_factory.mktemp("chat")
    return write_model_dir(
        directory, context_tokens=CONTEXT_TOKENS, chat_template=TEMPLATE, special_tokens=MARKS
    )


@pytest.fixture
def says(serve: Serve, chat_model: Path) -> Any:
    """``async with says(text) as (stub, prompts)``: a model that answers ``text``, token by token; the
    prompts that it was given.
    """
    tokenizer = Tokenizer.from_file(str(chat_model / "tokenizer.json"))
    answer_mark = tokenizer.token_to_id("<|answer|>")

    @asynccontextmanager
    async def saying(text: str) -> AsyncIterator[tuple[Any, list[str]]]:
        answer, prompts = tokenizer.encode(text).ids, list[str]()

        def next_token(history: Sequence[int]) -> int:
            at = history.index(answer_mark) + 1
            if len(history) == at:
                prompts.append(tokenizer.decode(history, skip_special_tokens=False))
            return next(iter(answer[len(history) - at :]), EOS)

        async with serve(ScriptedRunner(next_token), model=chat_model) as (_, channel):
            yield llm_pb2_grpc.LLMServiceStub(channel), prompts

    return saying


def calls_of(message: ChatMessage) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in message.tool_calls]


async def test_calls_are_read_and_nothing_of_them_is_content(says: Any) -> None:
    async with says(f"Let me see. {CALL}\n{CALL}") as (stub, _):
        request = ChatRequest(messages=[USER], tools=[WEATHER], max_tokens=400)
        parts = [part async for part in stub.StreamChat(request, timeout=30)]
        whole = await stub.Chat(request, timeout=30)
    assert [part.sequence for part in parts] == list(range(len(parts)))
    assert "".join(part.message.content for part in parts) == whole.message.content == "Let me see."
    expected = [("weather", {"city": "Zürich"})] * 2
    assert [call for part in parts for call in calls_of(part.message)] == expected
    assert calls_of(whole.message) == expected
    assert len({call.id for call in whole.message.tool_calls}) == 2
    assert parts[-1].finish_reason == whole.finish_reason == llm_pb2.FINISH_REASON_TOOL_CALLS
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.stop_token_id == EOS
    assert not whole.choices
    assert whole.message.role == ROLE_ASSISTANT


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("Nothing to call.", "Nothing to call."),
        ("<tool_call>{broken}</tool_call>", "<tool_call>{broken}</tool_call>"),
        (CALL.replace("weather", "nobody"), CALL.replace("weather", "nobody")),
    ],
)
async def test_what_is_no_call_is_content(says: Any, text: str, content: str) -> None:
    async with says(text) as (stub, _):
        whole = await stub.Chat(ChatRequest(messages=[USER], tools=[WEATHER], max_tokens=400), timeout=30)
    assert whole.message.content == content
    assert whole.finish_reason == llm_pb2.FINISH_REASON_EOS


async def test_a_call_that_max_tokens_cuts_is_content(says: Any) -> None:
    async with says(CALL) as (stub, _):
        request = ChatRequest(messages=[USER], tools=[WEATHER], max_tokens=20)
        whole = await stub.Chat(request, timeout=30)
    assert whole.message.content == CALL[: len("<tool_call>") + 19]
    assert whole.finish_reason == llm_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("mode", [chat_pb2.TOOL_CHOICE_MODE_NONE, None])
async def test_without_tools_markers_are_special_tokens_as_ever(says: Any, mode: Any) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": Choice(mode=mode)} if mode else {}
    async with says("a <tool_call>{}</tool_call> b") as (stub, _):
        request = ChatRequest(messages=[USER], max_tokens=99, **fields)
        whole = await stub.Chat(request, timeout=30)
        assert whole.message.content == "a {} b"


async def test_tokens_are_told_while_a_call_is_held_back(says: Any) -> None:
    options = llm_pb2.ResponseOptions(tokens=True)
    request = ChatRequest(messages=[USER], tools=[WEATHER], max_tokens=400, response_options=options)
    async with says(CALL) as (stub, _):
        parts = [part async for part in stub.StreamChat(request, timeout=30)]
    assert sum(len(part.tokens) for part in parts) == parts[-1].usage.completion_tokens
    assert all(part.tokens for part in parts)


async def test_the_conversation_goes_back_to_the_model(says: Any) -> None:
    call = ToolCall(id="x", name="weather", arguments='{"b": 1, "a": [1.5]}')
    messages = [
        user("Où?"),
        ChatMessage(role=ROLE_ASSISTANT, tool_calls=[call]),
        ChatMessage(role=ROLE_TOOL, tool_call_id="x", content="sunny"),
    ]
    request = ChatRequest(messages=messages, tools=[WEATHER])
    request.template_options["mood"] = 3
    async with says("ok") as (stub, prompts):
        await stub.Chat(request, timeout=30)
    properties = '"properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}'
    tool = '{"name": "weather", "description": "Tells it.", "parameters": {"type": "object", ' + properties
    arguments = '{"name": "weather", "arguments": {"b": 1, "a": [1.5]}}'
    assert prompts == [f"{tool}}}<tool_call>uOù?a{arguments}tsunny3<|answer|>"]


@pytest.fixture(scope="module")
def channel(embedded: ServerProcess) -> Iterator[grpc.Channel]:
    with embedded.channel() as channel:
        yield channel


DIALOGUE = [
    user("Hello, my name is Tom. I live in Dublin and I like rice."),
    ChatMessage(role=ROLE_ASSISTANT, content="Hello Tom, nice to meet you."),
    user("Where do I live?"),
]
dialogues = st.lists(
    st.builds(ChatMessage, role=st.sampled_from([ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT]), content=st.text()),
    min_size=1,
    max_size=4,
)


def test_a_dialogue_is_the_text_of_its_prompt(channel: grpc.Channel) -> None:
    chat = tokenizer_pb2.ChatInput(messages=DIALOGUE)
    request = tokenizer_pb2.TokenizeRequest(chat=chat)
    tokens = tokenizer_grpc.TokenizerServiceStub(channel).Tokenize(request, timeout=30)
    stub = llm_pb2_grpc.LLMServiceStub(channel)
    answer = stub.Chat(ChatRequest(messages=DIALOGUE, max_tokens=32), timeout=30)
    ids = [token.id for token in tokens.tokens]
    text = stub.GenerateText(llm_pb2.GenerateTextRequest(prompt_token_ids=ids, max_tokens=32), timeout=30)
    assert tokens.prompt.startswith("<|user|>Hello, my name is Tom.")
    assert tokens.prompt.endswith("<|user|>Where do I live?<|assistant|>")
    assert answer.message.content == text.generated_text
    assert "Dublin" in answer.message.content
    assert answer.finish_reason == text.finish_reason == llm_pb2.FINISH_REASON_EOS
    assert answer.usage.prompt_tokens == text.usage.prompt_tokens == tokens.count
    assert (answer.model, answer.stop_token_id) == (text.model, text.stop_token_id)


@settings(max_examples=30, deadline=None)
@given(dialogues, st.sampled_from([0.0, 1.0]), st.booleans())
def test_chat_is_the_joined_stream(
    channel: grpc.Channel, messages: list[ChatMessage], temperature: float, tokens: bool
) -> None:
    stub = llm_pb2_grpc.LLMServiceStub(channel)
    request = ChatRequest(
        messages=messages,
        max_tokens=12,
        sampling=llm_pb2.Sampling(temperature=temperature, seed=5),
        response_options=llm_pb2.ResponseOptions(tokens=tokens),
        cache=FRESH,
    )
    parts = list(stub.StreamChat(request, timeout=60))
    joined = ChatResponse()
    joined.CopyFrom(parts[-1])
    joined.message.content = "".join(part.message.content for part in parts)
    joined.ClearField("tokens")
    joined.tokens.extend(token for part in parts for token in part.tokens)
    joined.sequence = 0
    assert stub.Chat(request, timeout=60) == joined


def test_the_model_says_what_it_can(channel: grpc.Channel) -> None:
    request = model_pb2.GetModelRequest()
    found = model_pb2_grpc.ModelServiceStub(channel).GetModel(request, timeout=30).model.capabilities
    assert (found.chat_template, found.tools) == (True, False)


def assistant(**call: str) -> ChatMessage:
    return ChatMessage(role=ROLE_ASSISTANT, tool_calls=[ToolCall(**call)])


def tool(name: str, **parameters: Any) -> Tool:
    made = Tool(name=name)
    made.parameters.update(parameters)
    return made


def options(**fields: Any) -> ChatRequest:
    request = ChatRequest(messages=[USER])
    request.template_options.update(fields)
    return request


MODE = "tool_choice.mode is TOOL_CHOICE_MODE_"
BAD: list[tuple[ChatRequest, str, str]] = [
    (ChatRequest(), "messages", "must not be empty"),
    (ChatRequest(messages=[USER, ChatMessage(content="x")]), "messages[1].role", "is 0, and must be 1 to 5"),
    (ChatRequest(messages=[ChatMessage(role=9)]), "messages[0].role", "is 9"),  # type: ignore[arg-type]
    (
        ChatRequest(messages=[ChatMessage(role=ROLE_USER, tool_call_id="x")]),
        "messages[0].tool_call_id",
        "must be empty where the role is user",
    ),
    (
        ChatRequest(messages=[ChatMessage(role=ROLE_TOOL, tool_calls=[ToolCall(name="a")])]),
        "messages[0].tool_calls",
        "must be empty where the role is tool",
    ),
    (ChatRequest(messages=[assistant(name="")]), "messages[0].tool_calls[0].name", "is ''"),
    (
        ChatRequest(messages=[assistant(name="a", arguments="{")]),
        "messages[0].tool_calls[0].arguments",
        "is no JSON",
    ),
    (
        ChatRequest(messages=[assistant(name="a", arguments="[" * 90_000)]),
        "messages[0].tool_calls[0].arguments",
        "is no JSON",
    ),
    (
        ChatRequest(messages=[assistant(name="a", arguments="[1]")]),
        "messages[0].tool_calls[0].arguments",
        "must be a JSON object",
    ),
    (
        ChatRequest(messages=[assistant(name="a", arguments='{"a": NaN}')]),
        "messages[0].tool_calls[0].arguments",
        "NaN is no JSON",
    ),
    (
        ChatRequest(messages=[ChatMessage(role=ROLE_SYSTEM, content="x")]),
        "messages",
        "the model's chat template refuses them: no system messages",
    ),
    (ChatRequest(messages=[user("x" * 1100)]), "messages", "has 1102 tokens, and the limit is 1023"),
    (
        ChatRequest(messages=[USER] * 1024),
        "messages",
        "has 1024 messages, and a prompt has at most 1023 tokens",
    ),
    (ChatRequest(messages=[USER], tools=[tool("a b")]), "tools[0].name", "1 to 64 letters"),
    (
        ChatRequest(messages=[USER], tools=[tool("a"), tool("a")]),
        "tools[1].name",
        "as that of a tool before it",
    ),
    (
        ChatRequest(messages=[USER], tools=[tool("a", type="array")]),
        "tools[0].parameters.type",
        "is 'array', and must be \"object\"",
    ),
    (
        ChatRequest(messages=[USER], tools=[tool("a", maximum=float("inf"))]),
        "tools[0].parameters.maximum",
        "is inf, which JSON does not have",
    ),
    (
        ChatRequest(messages=[USER], tool_choice=Choice(mode=9)),  # type: ignore[arg-type]
        "tool_choice.mode",
        "is 9, and must be 0 to 4",
    ),
    (
        ChatRequest(messages=[USER], tool_choice=Choice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)),
        "tool_choice.mode",
        "is TOOL_CHOICE_MODE_REQUIRED, and tools is empty",
    ),
    (
        ChatRequest(
            messages=[USER],
            tools=[WEATHER],
            tool_choice=Choice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name="wether"),
        ),
        "tool_choice.name",
        "is 'wether', and tools has none of that name",
    ),
    (
        ChatRequest(messages=[USER], tools=[WEATHER], tool_choice=Choice(name="weather")),
        "tool_choice.name",
        f"must be empty where {MODE}UNSPECIFIED",
    ),
    (
        ChatRequest(messages=[USER], tools=[WEATHER], constraint=llm_pb2.Constraint(json_object=True)),
        "constraint",
        f"must not be set where tools may be called: tools has 1 and {MODE}UNSPECIFIED",
    ),
    (options(messages=3), "template_options.messages", "is a name that the template has already"),
    (options(eos_token="x"), "template_options.eos_token", "is a name that the template has already"),
    (options(**{"a b": 1}), "template_options", "has the name 'a b', which no template can use"),
    (ChatRequest(messages=[USER], max_tokens=-1), "max_tokens", "is -1"),
    (ChatRequest(messages=[USER], sampling=llm_pb2.Sampling(top_p=2)), "sampling.top_p", "is 2"),
]


@pytest.mark.parametrize(("request_", "field", "problem"), BAD, ids=lambda value: str(value)[:40])
async def test_a_bad_field_is_named(says: Any, request_: ChatRequest, field: str, problem: str) -> None:
    async with says("ok") as (stub, prompts):
        for call in (stub.Chat(request_, timeout=30), stub.StreamChat(request_, timeout=30).read()):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            violation = details(error.value, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == field
            assert problem in violation.description
        assert not prompts


async def unsupported(stub: Any, request: ChatRequest) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Chat(request, timeout=30)
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(error.value, error_details_pb2.ErrorInfo).reason == "UNSUPPORTED_PARAMETER"
    return str(error.value.details())


async def test_a_model_without_a_template_does_not_chat(serve: Serve) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        said = await unsupported(llm_pb2_grpc.LLMServiceStub(channel), ChatRequest(messages=[USER]))
    assert said == "messages: the model 'scripted' has no chat template"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages }}", "tools: the model's chat template does not show tools to it"),
        ("{{ messages }}{{ tools }}", "tools: this version cannot read how the model calls them"),
    ],
)
async def test_a_template_without_tools_takes_none(
    serve: Serve, tmp_path: Path, template: str, says: str
) -> None:
    model = write_model_dir(tmp_path / "model", chat_template=template, context_tokens=CONTEXT_TOKENS)
    async with serve(ScriptedRunner(), model=model) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        assert await unsupported(stub, ChatRequest(messages=[USER], tools=[WEATHER])) == says
        answer = await stub.Chat(ChatRequest(messages=[USER], max_tokens=1), timeout=30)
        assert answer.finish_reason == llm_pb2.FINISH_REASON_LENGTH


def test_the_embedded_model_is_never_left_without_a_message(channel: grpc.Channel) -> None:
    """Its template knows neither tools nor developers."""
    stub = llm_pb2_grpc.LLMServiceStub(channel)
    for rare in (
        ChatMessage(role=ROLE_DEVELOPER, content="Be brief."),
        ChatMessage(role=ROLE_TOOL, content="rain"),
        assistant(name="weather", arguments="{}"),
    ):
        with pytest.raises(grpc.RpcError, match="messages: the model's chat template passes over") as error:
            stub.Chat(ChatRequest(messages=[rare, USER]), timeout=30)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_field_of_another_version_is_refused(says: Any) -> None:
    request = ChatRequest.FromString(ChatRequest(messages=[USER]).SerializeToString() + b"\xfa\x3f\x01x")
    async with says("ok") as (stub, _):
        assert "this version knows no such field" in await unsupported(stub, request)


async def test_a_large_request_is_refused_for_the_same_reasons(says: Any) -> None:
    """It is looked through in a thread."""
    messages = [*[user("x" * 100)] * 300, ChatMessage(role=ROLE_USER, tool_call_id="x")]
    async with says("ok") as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError, match=r"messages\[300\]\.tool_call_id"):
            await stub.Chat(ChatRequest(messages=messages), timeout=30)
