"""Answers that the grammar lets through are read as calls, and no others are let through."""

from __future__ import annotations

import json

import llguidance
import pytest

from llm_grpc.text.tokenizer import TextTokenizer
from llm_grpc.text.tool_calls import ToolCallParser
from llm_grpc.text.tool_format import GRANITE, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat
from llm_grpc.text.tool_grammar import ToolSchema, arguments_rule, tool_grammar
from tests.rpc.models import EOS, write_model_dir

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [ToolSchema("weather", "", CITY), ToolSchema("clock", "", NOTHING)]
NAMES = [tool.name for tool in TOOLS]
ONE = '{"name": "weather", "arguments": {"city": "Rome"}}'
OTHER = '{"name": "clock", "arguments": {}}'
WRONG = '{"name": "weather", "arguments": {"city": 3}}'
SPECIAL = ("<tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>")


@pytest.fixture(scope="module", params=[(), SPECIAL], ids=["texts", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = write_model_dir(tmp_path_factory.mktemp("grammar"), special_tokens=request.param)
    return TextTokenizer(directory / "tokenizer.json", 1000)


def accepts(tokenizer: TextTokenizer, grammar: str, text: str) -> bool:
    """Whether the grammar lets a model say ``text`` and end there."""
    for at, tool in enumerate(TOOLS):
        grammar += f"{arguments_rule(at)}: %json {json.dumps(tool.arguments)}\n"
    guide = llguidance.LLTokenizer(tokenizer.raw.to_str(), eos_token=EOS)
    matcher = llguidance.LLMatcher(guide, llguidance.LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    return matcher.validate_tokens(ids := [*tokenizer.raw.encode(text).ids, EOS]) == len(ids)


CASES = [
    (HERMES, "<tool_call>\n{}\n</tool_call>"),
    (MISTRAL, "[TOOL_CALLS][{}]"),
    (GRANITE, "<|tool_call|>[{}]"),
    (LLAMA, "{}"),
]


@pytest.mark.parametrize(("form", "written"), CASES)
def test_calls_are_let_through_and_read(tokenizer: TextTokenizer, form: ToolFormat, written: str) -> None:
    grammar = tool_grammar(form, TOOLS, tokenizer, only_one=False)
    for call in (ONE, OTHER):
        text = written.replace("{}", call.replace("arguments", form.arguments))
        assert accepts(tokenizer, grammar, text)
        parser = ToolCallParser(form, NAMES)
        calls = parser.push(text).calls + parser.finish().calls
        assert [(c.name, json.loads(c.arguments)) for c in calls] == [tuple(json.loads(call).values())]
    for wrong in (WRONG, OTHER.replace("clock", "nobody"), "{}"):
        assert not accepts(
            tokenizer, grammar, written.replace("{}", wrong.replace("arguments", form.arguments))
        )
    assert not accepts(tokenizer, grammar, "Hello")
    assert not accepts(tokenizer, grammar, "")


def test_the_format_with_names_before_the_arguments(tokenizer: TextTokenizer) -> None:
    grammar = tool_grammar(MISTRAL_NAMED, TOOLS, tokenizer, only_one=False)
    assert accepts(tokenizer, grammar, '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}')
    assert accepts(tokenizer, grammar, '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]clock[ARGS]{}')
    assert not accepts(tokenizer, grammar, '[TOOL_CALLS]clock[ARGS]{"city": "Rome"}')


def test_one_call_where_a_tool_is_named(tokenizer: TextTokenizer) -> None:
    several = f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{OTHER}\n</tool_call>"
    assert accepts(tokenizer, tool_grammar(HERMES, TOOLS, tokenizer, only_one=False), several)
    assert not accepts(tokenizer, tool_grammar(HERMES, TOOLS, tokenizer, only_one=True), several)
    listed = f"[TOOL_CALLS][{ONE}, {OTHER}]"
    assert accepts(tokenizer, tool_grammar(MISTRAL, TOOLS, tokenizer, only_one=False), listed)
    assert not accepts(tokenizer, tool_grammar(MISTRAL, TOOLS, tokenizer, only_one=True), listed)
