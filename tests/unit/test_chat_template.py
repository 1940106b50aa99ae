from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from llm_grpc.errors import InvalidParameter, ManifestError, UnsupportedParameter
from llm_grpc.text.chat_template import ChatTemplate, Conversation

USER: Mapping[str, Any] = {"role": "user", "content": "hi"}
NOON = datetime(2026, 7, 14, 12, 0)  # noqa: DTZ001 - templates show the server's own time


def render(source: str, *messages: Mapping[str, Any], **options: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"}, now=lambda: NOON, max_operations=20_000)
    return template.render(Conversation(messages or [USER], None, options))


def test_what_a_template_finds() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}") == "<s>hiTrue"
    assert render("{{ tools is none }} {{ documents is none }} {{ other is defined }}") == "True True False"
    assert render("{{ strftime_now('%d %b %Y') }}") == "14 Jul 2026"
    assert render("{{ x | tojson }}", x={"a": "<é>"}) == '{"a": "<é>"}'
    assert render("{{ x | tojson(indent=1) }}", x=[1]) == "[\n 1\n]"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}") == "21"
    assert render("{{ messages[0]['content'] }}  \n  {%- if true %}\n  x\n  {%- endif %}\n") == "hi  x"


def test_the_template_of_tools_is_taken_where_there_are_tools() -> None:
    template = ChatTemplate("plain", {}, "{% for tool in tools %}<tool_call>{{ tool }}{% endfor %}")
    assert template.render(Conversation([USER])) == "plain"
    assert template.render(Conversation([USER], [{"a": 1}])) == "<tool_call>{'a': 1}"
    assert template.shows_tools
    assert template.tool_format
    assert template.tool_format.name == "hermes"


def test_a_template_that_shows_no_tools() -> None:
    template = ChatTemplate("{% set tools = 3 %}{{ tools }}<tool_call>", {})
    assert not template.shows_tools
    assert template.tool_format is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('no system role') }}", "refuses them: no system role"),
        ("{{ messages[0].content.nothing.more }}", "refuses them: 'str object' has no attribute 'nothing'"),
        ("{{ messages[0].content + 1 }}", "fails over them: TypeError"),
        ("{{ messages.append(1) }}", "refuses them"),
        ("{{ messages.__class__() }}", "refuses them"),
        ("{{ ''.__class__.__mro__ }}", "refuses them"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails over them: RecursionError"),
        ("{{ range(100001) }}", "fails over them: OverflowError"),
        ("", "makes nothing of them"),
        ("{% for m in messages %}{% endfor %}", "makes nothing of them"),
    ],
)
def test_what_a_template_refuses_is_the_messages_fault(source: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        render(source)
    assert error.value.field == "messages"
    assert says in error.value.problem


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(n) %}{% for b in range(n) %}{{ '' }}{% endfor %}{% endfor %}x",
        "{% for a in range(n) %}{% for b in range(n) %}{% set _ = loop.index %}{% endfor %}{% endfor %}x",
        (
            "{% for a in range(n) %}{% for b in range(n) %}{% if messages[0].role %}{% endif %}{% endfor %}"
            "{% endfor %}x"
        ),
        (
            "{% macro m() %}{% endmacro %}{% for a in range(n) %}{% for b in range(n) %}"
            "{% if m() %}{% endif %}{% endfor %}{% endfor %}x"
        ),
        "{{ messages[0].content * (n * n) }}",
        "{{ (n * n) * [1] }}",
        "{{ n ** (n * n) }}",
        "{% for a in range(n) %}{{ messages[0].content * (n * 2) }}{% endfor %}",
    ],
)
def test_no_request_makes_a_template_run_for_ever(source: str) -> None:
    with pytest.raises(InvalidParameter, match="more than"):
        render(source, n=20_000)


def test_counting_ends_with_the_rendering() -> None:
    template = ChatTemplate("{% for i in range(n) %}{{ loop.index }}{% endfor %}", {}, max_operations=1000)
    for _ in range(3):
        assert template.render(Conversation([USER], None, {"n": 400}))
        with pytest.raises(InvalidParameter):
            template.render(Conversation([USER], None, {"n": 600}))


def test_a_broken_template_is_named_with_its_line() -> None:
    with pytest.raises(ManifestError, match="line 2"):
        ChatTemplate("\n{% if %}", {})


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "range", "namespace"]
)
def test_names_that_are_taken(name: str) -> None:
    template = ChatTemplate("x", {"bos_token": "<s>"})
    assert template.is_taken(name)
    assert not template.is_taken("enable_thinking")


async def test_long_conversations_are_rendered_beside_the_loop() -> None:
    threads: list[int] = []

    def now() -> datetime:
        threads.append(threading.get_ident())
        return NOON

    template = ChatTemplate("{{ strftime_now('%Y') }}", {}, now=now)
    here = threading.get_ident()
    await template.prompt(Conversation([USER]))
    await template.prompt(Conversation([{"role": "user", "content": "x" * 5000}]))
    await template.prompt(Conversation([USER] * 100))
    await template.prompt(Conversation([USER], None, {"n": 1}))
    assert [thread == here for thread in threads] == [True, False, False, False]


async def test_renderings_at_the_same_time_count_for_themselves() -> None:
    source = "{% for i in range(n) %}{% set _ = loop.index %}{% endfor %}x"
    template = ChatTemplate(source, {}, max_operations=1000)
    asked = [template.prompt(Conversation([USER], None, {"n": 900})) for _ in range(30)]
    assert await asyncio.gather(*asked) == ["x"] * 30


@pytest.mark.parametrize(
    ("rare", "part"),
    [
        ({"role": "tool", "content": "rain"}, "messages whose role is tool"),
        ({"role": "developer", "content": "be brief"}, "messages whose role is developer"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "tool_calls"),
    ],
)
async def test_what_a_template_passes_over_is_refused(rare: dict[str, Any], part: str) -> None:
    known = (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.role + m.content }}{% endif %}"
    )
    conversation = Conversation([{"role": "user", "content": "a"}, rare, {"role": "user", "content": "b"}])
    with pytest.raises(
        UnsupportedParameter, match=f"^messages: the model's chat template passes over {part}$"
    ):
        await ChatTemplate(known + "{% endfor %}", {}).prompt(conversation)
    shown = await ChatTemplate("{{ messages }}", {}).prompt(conversation)
    assert str(rare) in shown


async def test_a_template_that_asks_for_a_role_shows_it() -> None:
    strict = "{% if not messages[-1].role == 'tool' %}{{ raise_exception('no') }}{% endif %}answered"
    messages = [{"role": "user", "content": "a"}, {"role": "tool", "content": "rain"}]
    assert await ChatTemplate(strict, {}).prompt(Conversation(messages)) == "answered"
