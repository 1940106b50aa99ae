"""Text to tokens and back, over the embedded model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.v1 import tokenizer_pb2_grpc
from llm_grpc.v1.chat_pb2 import ROLE_ASSISTANT, ROLE_USER, ChatMessage, Tool
from llm_grpc.v1.tokenizer_pb2 import ChatInput, DetokenizeRequest, TokenizeRequest
from tests.rpc.conftest import Serve
from tests.rpc.models import write_model_dir
from tests.rpc.process import ServerProcess
from tests.rpc.test_bad_input import details
from tests.unit.scripted_runner import ScriptedRunner

RAW = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
HI = ChatMessage(role=ROLE_USER, content="Hi, é!")
CHAT = ChatInput(messages=[HI])


@pytest.fixture(scope="module")
def stub(embedded: ServerProcess) -> Iterator[tokenizer_pb2_grpc.TokenizerServiceStub]:
    with embedded.channel() as channel:
        yield tokenizer_pb2_grpc.TokenizerServiceStub(channel)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60), special=st.sampled_from([None, False, True]))
def test_tokens_are_the_prompts_and_cover_the_text(stub: Any, text: str, special: bool | None) -> None:
    answer = stub.Tokenize(TokenizeRequest(text=text, add_special_tokens=special), timeout=30)
    expected = RAW.encode(text, add_special_tokens=special is not False)
    assert [token.id for token in answer.tokens] == expected.ids
    assert [token.text for token in answer.tokens] == expected.tokens
    assert (answer.count, answer.truncated_count, answer.prompt) == (len(expected.ids), 0, "")
    covered = text.encode()
    for token, (start, end) in zip(answer.tokens, expected.offsets, strict=True):
        assert covered[token.start : token.end].decode() == text[start:end]


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=60))
def test_there_and_back(stub: Any, text: str) -> None:
    there = stub.Tokenize(TokenizeRequest(text=text, add_special_tokens=False), timeout=30)
    ids = [token.id for token in there.tokens]
    back = stub.Detokenize(DetokenizeRequest(token_ids=ids, keep_special_tokens=True), timeout=30)
    assert back.text == text


def test_a_conversation(stub: Any) -> None:
    answer = stub.Tokenize(TokenizeRequest(chat=CHAT), timeout=30)
    assert answer.prompt == "<|user|>Hi, é!<|assistant|>"
    assert [token.id for token in answer.tokens] == RAW.encode(answer.prompt, add_special_tokens=False).ids
    assert answer.tokens[0].text == "<|user|>"
    assert (answer.tokens[0].start, answer.tokens[0].end) == (0, 8)
    assert answer.tokens[-1].end == len(answer.prompt.encode())


def test_the_last_tokens_are_kept(stub: Any) -> None:
    whole = stub.Tokenize(TokenizeRequest(text="one two three four"), timeout=30)
    cut = stub.Tokenize(TokenizeRequest(text="one two three four", truncate_tokens=3), timeout=30)
    assert list(cut.tokens) == list(whole.tokens)[-3:]
    assert (cut.count, cut.truncated_count) == (3, whole.count - 3)
    counted = stub.Tokenize(TokenizeRequest(chat=CHAT, truncate_tokens=3, count_only=True), timeout=30)
    assert (counted.count, len(counted.tokens), counted.prompt) == (3, 0, "")
    assert counted.truncated_count > 0


def test_a_text_may_be_longer_than_the_context(stub: Any) -> None:
    assert stub.Tokenize(TokenizeRequest(text="word " * 20_000, count_only=True), timeout=60).count > 20_000


def test_special_tokens_have_no_text_unless_they_are_kept(stub: Any) -> None:
    assert stub.Detokenize(DetokenizeRequest(token_ids=[1, 0]), timeout=30).text == ""
    request = DetokenizeRequest(token_ids=[1, 0], keep_special_tokens=True)
    assert stub.Detokenize(request, timeout=30).text == "<|user|><|eos|>"
    assert stub.Detokenize(DetokenizeRequest(), timeout=30).text == ""


def test_half_a_character_is_shown_as_such(stub: Any) -> None:
    ids = RAW.encode("😀", add_special_tokens=False).ids
    assert len(ids) > 1
    assert stub.Detokenize(DetokenizeRequest(token_ids=ids[:-1]), timeout=30).text == "\ufffd"


@pytest.mark.parametrize(
    ("method", "request_", "field", "problem"),
    [
        ("Tokenize", TokenizeRequest(), "text", "must be set where there is no chat"),
        ("Tokenize", TokenizeRequest(chat=ChatInput()), "chat.messages", "must not be empty"),
        ("Tokenize", TokenizeRequest(chat=CHAT, add_special_tokens=True), "add_special_tokens", "with chat"),
        ("Tokenize", TokenizeRequest(text="a", truncate_tokens=-1), "truncate_tokens", "is -1"),
        (
            "Tokenize",
            TokenizeRequest(
                chat=ChatInput(messages=[HI, ChatMessage(role=ROLE_ASSISTANT, tool_call_id="x")])
            ),
            "chat.messages[1].tool_call_id",
            "must be empty",
        ),
        (
            "Detokenize",
            DetokenizeRequest(token_ids=[3, 1024]),
            "token_ids[1]",
            "is 1024, and must be 0 to 1023",
        ),
        ("Detokenize", DetokenizeRequest(token_ids=[-1]), "token_ids[0]", "is -1, and must be 0 to 1023"),
    ],
)
def test_a_bad_field_is_named(stub: Any, method: str, request_: Any, field: str, problem: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        getattr(stub, method)(request_, timeout=30)
    caught: Any = error.value
    assert caught.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = details(caught, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == field
    assert problem in violation.description


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (TokenizeRequest(text="a", model="nobody"), grpc.StatusCode.NOT_FOUND),
        (
            TokenizeRequest(chat=ChatInput(messages=[HI], tools=[Tool(name="a")])),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ],
)
def test_what_the_server_lacks(stub: Any, request_: TokenizeRequest, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.Tokenize(request_, timeout=30)
    caught: Any = error.value
    assert caught.code() is code


async def test_a_template_that_refuses_is_said_of_the_messages(serve: Serve, tmp_path: Path) -> None:
    model = write_model_dir(tmp_path / "model", chat_template="{{ raise_exception('never') }}")
    async with serve(ScriptedRunner(), model=model) as (_, channel):
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=r"chat\.messages: .* refuses them: never"):
            await stub.Tokenize(TokenizeRequest(chat=CHAT), timeout=30)
