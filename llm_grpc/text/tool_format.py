"""How families of models write calls of tools, as their chat templates show."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

_LETTERS = string.ascii_letters + string.digits


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    """Nine letters and digits: templates of the family refuse any other."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A call is ``begin``, a JSON value and ``end``.

    The value is an object with the members name and ``arguments``, or where ``is_list`` a list of them.
    With a ``between`` it is the arguments alone, and name and ``between`` stand before it. ``is_bare`` means
    that ``begin`` may be left out where the answer begins with the value. ``new_id`` makes ids of calls.
    """

    name: str
    begin: str
    end: str = ""
    arguments: str = "arguments"
    between: str = ""
    is_list: bool = False
    is_bare: bool = False
    new_id: Callable[[], str] = _long_id

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts around the JSON; the vocabulary may have special tokens of them."""
        return tuple(filter(None, (self.begin, self.between, self.end)))


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
"""Hermes, Qwen, SmolLM3 and others that took it over."""

MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", is_list=True, new_id=_short_id)
MISTRAL_NAMED = ToolFormat("mistral-named", "[TOOL_CALLS]", between="[ARGS]", new_id=_short_id)
"""Mistral, up to and from its tokenizers of version 11."""

GRANITE = ToolFormat("granite", "<|tool_call|>", "<|/tool_call|>", is_list=True)
"""Granite, which does without the end, and Phi-4-mini."""

LLAMA = ToolFormat("llama", "<|python_tag|>", arguments="parameters", is_bare=True)
"""Llama 3.1 and later ones that call in JSON."""

_OTHERS = ("<function=", "<arg_key>", "<|tool_call_begin|>", "[CALL_ID]")
"""Signs of formats that share markers with the ones here and are read otherwise."""

_SIGNS = (
    ("[ARGS]", MISTRAL_NAMED),
    ("[TOOL_CALLS]", MISTRAL),
    ("<|tool_call|>", GRANITE),
    ("<tool_call>", HERMES),
    ('"parameters": ', LLAMA),
)
"""What a template of a family holds. The first that is found counts."""


def tool_format_of(template: str) -> ToolFormat | None:
    """The format that a chat template shows; None where it is none of these."""
    if any(sign in template for sign in _OTHERS):
        return None
    return next((found for sign, found in _SIGNS if sign in template), None)
