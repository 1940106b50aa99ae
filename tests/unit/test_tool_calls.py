from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.text.tool_calls import Parsed, ToolCallParser
from llm_grpc.text.tool_format import (
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    ToolFormat,
    tool_format_of,
)

NAMES = ("weather", "clock")
CALL = '{"name": "weather", "arguments": {"city": "Zürich \\"}]"}}'
ARGUMENTS = '{"city": "Zürich \\"}]"}'


def parse(form: ToolFormat, *pieces: str) -> Parsed:
    """The whole answer, pushed in pieces."""
    parser = ToolCallParser(form, NAMES)
    parts = [*(parser.push(piece) for piece in pieces), parser.finish()]
    return Parsed("".join(p.content for p in parts), tuple(call for p in parts for call in p.calls))


def named(parsed: Parsed) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls without ids; their arguments as values."""
    return parsed.content, [(call.name, json.loads(call.arguments)) for call in parsed.calls]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, f"<tool_call>\n{CALL}\n</tool_call>"),
        (HERMES, f"<tool_call>{CALL}"),
        (HERMES, f"<tool_call>{CALL}</tool_"),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}]"),
        (MISTRAL, f"[TOOL_CALLS]{CALL}"),
        (MISTRAL_NAMED, f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}"),
        (GRANITE, f"<|tool_call|>[{CALL}]"),
        (GRANITE, f"<|tool_call|>[{CALL}]<|/tool_call|>"),
        (LLAMA, CALL.replace("arguments", "parameters")),
        (LLAMA, f"\n{CALL}\n"),
        (LLAMA, "<|python_tag|>" + CALL.replace("arguments", "parameters")),
    ],
)
def test_a_call(form: ToolFormat, text: str) -> None:
    expected = ("", [("weather", {"city": 'Zürich "}]'})])
    assert named(parse(form, text)) == expected
    assert named(parse(form, *text)) == expected


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, '<tool_call>{"name":"clock"}</tool_call>\n<tool_call>{"name":"weather"}</tool_call>'),
        (HERMES, '<tool_call>[{"name":"clock"}, {"name":"weather"}]</tool_call>'),
        (MISTRAL, '[TOOL_CALLS][{"name":"clock"}, {"name":"weather"}]'),
        (MISTRAL_NAMED, "[TOOL_CALLS]clock[ARGS]{}[TOOL_CALLS]weather[ARGS]{}"),
        (GRANITE, '<|tool_call|>[{"name":"clock"},{"name":"weather"}]'),
        (LLAMA, '{"name":"clock","parameters":{}}; {"name":"weather","parameters":{}}'),
        (LLAMA, '<|python_tag|>{"name":"clock"}\n<|python_tag|>{"name":"weather"}'),
    ],
)
def test_several_calls_with_ids_of_their_own(form: ToolFormat, text: str) -> None:
    parsed = parse(form, *text)
    assert named(parsed) == ("", [("clock", {}), ("weather", {})])
    assert len({call.id for call in parsed.calls}) == 2


def test_text_around_calls_is_content_and_comes_before_them() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.push("Let me see.\n").content == "Let me see."
    assert parser.push("<tool_").content == ""
    assert parser.push('call>{"name": "clock", "arg') == Parsed("")
    assert [call.name for call in parser.push('uments": {}}').calls] == ["clock"]
    assert parser.push("\n</tool_call>\n") == Parsed("")
    assert parser.push("Done. ").content == "Done."
    assert parser.finish().content == " "


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, "a < b <tool_call"),
        (HERMES, "one \n <tool_call> two"),
        (HERMES, '<tool_call>{"name": "weather"'),
        (HERMES, '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": 3}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"x": NaN}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"x": 1e999}}</tool_call>'),
        (HERMES, '<tool_call>{"name": ["weather"], "arguments": {}}</tool_call>'),
        (HERMES, "<tool_call>[]</tool_call>"),
        (HERMES, "<tool_call>" + "[" * 5000 + "]" * 5000),
        (MISTRAL, f'[TOOL_CALLS][{CALL}, {{"name": "nobody"}}]'),
        (MISTRAL_NAMED, "[TOOL_CALLS]nobody[ARGS]{}"),
        (MISTRAL_NAMED, "[TOOL_CALLS]" + "a" * 80),
        (LLAMA, '{"temperature": 3}'),
        (LLAMA, f"Here: {CALL}"),
        (LLAMA, "<|python_tag|>print(3)"),
    ],
)
def test_what_is_no_call_is_content(form: ToolFormat, text: str) -> None:
    assert parse(form, text) == Parsed(text)
    assert parse(form, *text) == Parsed(text)


def test_a_call_behind_a_broken_one_is_seen() -> None:
    text = f"<tool_call>{{broken<tool_call>{CALL}</tool_call>"
    assert named(parse(HERMES, *text)) == named(parse(HERMES, text))
    assert parse(HERMES, text).content == "<tool_call>{broken"


def test_ids_are_as_the_family_takes_them() -> None:
    (call,) = parse(MISTRAL, f"[TOOL_CALLS][{CALL}]").calls
    assert len(call.id) == 9
    assert call.id.isalnum()
    (call,) = parse(HERMES, f"<tool_call>{CALL}").calls
    assert call.id.startswith("call_")


PIECES = st.sampled_from([
    "<tool_call>", "</tool_call>", CALL, '{"name": "clock"}', '{"name"', "[", "]", "{", "}", '"', "\\",
    " ", "\n", "text", "<", "<tool", "[TOOL_CALLS]", "[ARGS]", "clock", "<|python_tag|>", ";",
    "<|tool_call|>", "é",
])  # fmt: skip
FORMS = st.sampled_from([HERMES, MISTRAL, MISTRAL_NAMED, GRANITE, LLAMA])


@given(FORMS, st.lists(PIECES, max_size=12), st.data())
def test_how_the_text_is_cut_changes_nothing(form: ToolFormat, pieces: list[str], data: Any) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cut = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(form, text)
    assert named(parse(form, *cut)) == named(whole)
    assert named(parse(form, *text)) == named(whole)
    if not whole.calls:
        assert whole.content == text


@given(st.text(), st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(), st.text()))))
def test_calls_as_a_model_writes_them(content: str, calls: list[tuple[str, dict[str, str]]]) -> None:
    content = content.replace("<", "").strip()
    blocks = [
        "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"
        for name, arguments in calls
    ]
    assert named(parse(HERMES, *"\n".join([content, *blocks]))) == (content, calls)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("<tool_call>{...}</tool_call>", HERMES),
        ("{{ '[TOOL_CALLS][' }}", MISTRAL),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", MISTRAL_NAMED),
        ("{{ '<|tool_call|>' }}", GRANITE),
        ("""{{- '"parameters": ' }}""", LLAMA),
        ("<tool_call><function=name>", None),
        ("{{ tools }}", None),
    ],
)
def test_the_format_is_seen_in_the_template(template: str, form: ToolFormat | None) -> None:
    assert tool_format_of(template) is form
