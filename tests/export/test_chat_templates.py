"""A prompt that the server makes of a conversation is what transformers makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.errors import InvalidParameter
from llm_grpc.export.tokenizer_files import write_tokenizer
from llm_grpc.manifest import load_manifest
from llm_grpc.text.chat_template import ChatTemplate, Conversation, load_chat_template
from llm_grpc.text.tokenizer import TextTokenizer

TESTS = Path(__file__).parents[1]
TEMPLATES = sorted((TESTS / "data/chat_templates").glob("*.jinja"))
CHECKPOINT = TESTS.parent / "models/embedded/checkpoint"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<x>"]}

SYSTEM = {"role": "system", "content": 'Be "short". '}
USER = {"role": "user", "content": "  Hé, what's <up> & {{ down }}?\n"}
ASSISTANT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nAll good."}
DEVELOPER = {"role": "developer", "content": "Count."}
ARGUMENTS = {"city": "Zürich <b>", "days": 2, "deep": {"list": [1, 2.5, None, True]}}
CALL = {"type": "function", "id": "abcdef123", "function": {"name": "weather", "arguments": ARGUMENTS}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TWO_CALLS = {"role": "assistant", "content": "Wait.", "tool_calls": [CALL, CALL]}
ANSWER = {"role": "tool", "content": '{"sun": true}', "tool_call_id": "abcdef123", "name": "weather"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "a 'city'\nof ours"},
        "deep": {"type": ["object", "null"], "properties": {"list": {"type": "array", "enum": [1, 2]}}},
    },
    "required": ["city"],
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather & “more”", "parameters": PARAMETERS},
}

CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, ASSISTANT, USER],
    [USER, CALLS, ANSWER],
    [SYSTEM, USER, CALLS, ANSWER, ASSISTANT, USER],
    [USER, TWO_CALLS, ANSWER, ANSWER, USER],
    [USER, USER],
    [DEVELOPER, USER],
    [SYSTEM],
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False, "thinking": True},
    {"date_string": "1 May 2025", "tools_in_user_message": False},
    {"documents": [{"title": "t", "text": "x"}]},
]


def theirs(source: str, chat: list[dict[str, Any]], tools: Any, options: Mapping[str, Any]) -> str | None:
    """What transformers makes; None where the template refuses."""
    given = {**SPECIAL, **options, "add_generation_prompt": True}
    try:
        rendered: list[str] = render_jinja_template([chat], tools, chat_template=source, **given)[0]
    except Exception:  # noqa: BLE001 - templates raise what they like
        return None
    return rendered[0]


def ours(
    template: ChatTemplate, chat: list[dict[str, Any]], tools: Any, options: Mapping[str, Any]
) -> str | None:
    """What the server makes; None where the template refuses."""
    try:
        return template.render(Conversation(chat, tools, options))
    except InvalidParameter:
        return None


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_prompts_are_those_of_transformers(path: Path) -> None:
    source = path.read_text()
    template = ChatTemplate(source, SPECIAL)
    num_made = 0
    for chat, tools, options in itertools.product(CHATS, (None, [TOOL]), OPTIONS):
        expected = theirs(source, chat, tools, options)
        assert ours(template, chat, tools, options) == expected
        num_made += expected is not None
    assert num_made >= 24, "the template refuses nearly all"


def test_the_embedded_model_gets_the_same_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    template = load_chat_template(EMBEDDED_MODEL, load_manifest(EMBEDDED_MODEL))
    assert template
    served = TextTokenizer(EMBEDDED_MODEL / "tokenizer.json", 1024)
    for chat in CHATS:
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        prompt = template.render(Conversation(chat))
        assert [token.id for token in served.tokens(prompt, add_special_tokens=False)] == ids


def test_the_special_tokens_of_the_tokenizer_are_in_the_manifest() -> None:
    tokens = AutoTokenizer.from_pretrained(CHECKPOINT).special_tokens_map
    manifest = load_manifest(EMBEDDED_MODEL)
    assert manifest.model_dump(mode="json")["special_tokens"] == tokens


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        (None, {}),
        ("one", {"chat_template.jinja": "one"}),
        ({"default": "one"}, {"chat_template.jinja": "one"}),
        (
            {"default": "one", "tool_use": "two", "rag": "three"},
            {"chat_template.jinja": "one", "chat_template_tools.jinja": "two"},
        ),
        ({"tool_use": "two"}, {}),
    ],
)
def test_templates_are_written_by_their_names(
    tmp_path: Path, templates: Any, expected: dict[str, str]
) -> None:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.chat_template = templates
    assert write_tokenizer(tokenizer, tmp_path) == {"tokenizer.json", *expected}
    assert {path.name: path.read_text() for path in tmp_path.glob("*.jinja")} == expected
