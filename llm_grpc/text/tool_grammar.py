"""A grammar that holds an answer to calls of tools, for requests that ask for one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llm_grpc.text.tokenizer import TextTokenizer
from llm_grpc.text.tool_format import ToolFormat

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's arguments, by the tool's name."""


def tool_grammar(form: ToolFormat, tools: Schemas, tokenizer: TextTokenizer, *, only_one: bool) -> str:
    """In the Lark format of llguidance: one call of one of ``tools``, or as many as the model likes where the
    format has several and not ``only_one``.
    """
    begin, end = (_literal(marker, tokenizer) for marker in (form.begin, form.end))
    if form.between:
        between = _literal(form.between, tokenizer)
        forms = [f"{begin} {json.dumps(name)} {between} %json {_text(tools[name])}" for name in tools]
        call = "\n    | ".join(forms)
        return _lark(call if only_one else f"({call})+")
    calls = {"anyOf": [_call_schema(form, name, schema) for name, schema in tools.items()]}
    if form.is_list:
        several = {"maxItems": 1} if only_one else {}
        return _lark(f"{begin} %json " + _text({"type": "array", "items": calls, "minItems": 1, **several}))
    if form.is_bare:
        return _lark(f"%json {_text(calls)}")
    call = f'{begin} "\\n" %json {_text(calls)} "\\n" {end}'
    return _lark(call if only_one else f'{call} ("\\n" {call})*')


def _call_schema(form: ToolFormat, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, form.arguments: arguments},
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }


def _literal(marker: str, tokenizer: TextTokenizer) -> str:
    """A marker as its special token, or as a text where there is none."""
    ids = tokenizer.special_ids([marker])
    return f"<[{min(ids)}]>" if ids else json.dumps(marker, ensure_ascii=False)


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _lark(start: str) -> str:
    return f"start: {start}\n"
