"""A grammar that holds an answer to calls of tools, for requests that ask for one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_grpc.text.tokenizer import TextTokenizer
from llm_grpc.text.tool_format import ToolFormat


class ToolSchema(NamedTuple):
    """The JSON schema of a tool's arguments; ``field`` is where the request has it."""

    name: str
    field: str
    arguments: dict[str, Any]


def arguments_rule(at: int) -> str:
    """The name of the rule for the arguments of tool ``at``, which a grammar of calls leaves out."""
    return f"arguments_{at}"


def tool_grammar(
    form: ToolFormat, tools: Sequence[ToolSchema], tokenizer: TextTokenizer, *, only_one: bool
) -> str:
    """In the Lark format of llguidance, without the ``arguments_rule`` of each tool: one call of one of
    ``tools``, or as many as the model likes where the format has several and not ``only_one``.
    """
    begin, end = (_literal(marker, tokenizer) for marker in (form.begin, form.end))
    if form.between:
        between = _literal(form.between, tokenizer)
        start = f"{begin} called"
        called = [f"{_text(tool.name)} {between} {arguments_rule(at)}" for at, tool in enumerate(tools)]
        start = start if only_one else f"({start})+"
    else:
        called = [
            f'{_text(_head(form, tool.name))} {arguments_rule(at)} "}}"' for at, tool in enumerate(tools)
        ]
        start = _start(form, begin, end, only_one=only_one)
    return f"start: {start}\ncalled: " + "\n    | ".join(called) + "\n"


def _start(form: ToolFormat, begin: str, end: str, *, only_one: bool) -> str:
    if form.is_list:
        several = "" if only_one else ' (", " called)*'
        return f'{begin} "[" called{several} "]"'
    if form.is_bare:
        return "called"
    call = f'{begin} "\\n" called "\\n" {end}'
    return call if only_one else f'{call} ("\\n" {call})*'


def _head(form: ToolFormat, name: str) -> str:
    """What stands before the arguments, as templates write it."""
    return f'{{"name": {json.dumps(name)}, "{form.arguments}": '


def _literal(marker: str, tokenizer: TextTokenizer) -> str:
    """A marker as its special token, or as a text where there is none."""
    ids = tokenizer.special_ids([marker])
    return f"<[{min(ids)}]>" if ids else _text(marker)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
