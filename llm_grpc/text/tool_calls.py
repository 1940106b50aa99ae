"""Calls of tools in a growing text: nothing of a call is let out as text, and no text is lost."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from llm_grpc.text import strict_json
from llm_grpc.text.json_end import JsonEnd
from llm_grpc.text.tool_format import ToolFormat

_MAX_NAME_CHARACTERS = 64
"""Longest name of a tool in the contract: what is longer is none, and waits for no ``between``."""


class ToolCall(NamedTuple):
    """A call of the tool ``name``; ``arguments`` are a JSON object as text."""

    id: str
    name: str
    arguments: str


class Parsed(NamedTuple):
    """What a text gave: content and calls, each whole."""

    content: str
    calls: tuple[ToolCall, ...] = ()


class ToolCallParser:
    """Divides the text of one answer into content and calls of tools.

    A call names one of ``names`` and has an object of arguments; anything else that looks like one is
    content, and so is one that the end of the text cuts. Space around calls, and what separates those
    without a ``begin``, is neither.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self._form = form
        self._names = frozenset(names)
        self._held = ""
        self._call: _Call | None = None
        self._after_call = self._awaits_end = self._has_content = False
        self._content: list[str] = []
        self._calls: list[ToolCall] = []

    def push(self, text: str) -> Parsed:
        """Take new text and return what is settled."""
        self._held += text
        self._read()
        return self._taken()

    def finish(self) -> Parsed:
        """Return what was held back: the text has ended."""
        while self._call:  # it was cut; there may be a whole one behind its beginning
            self._refuse(self._call)
            self._read()
        rest, self._held = self._held, ""
        if self._after_call:
            rest = rest.strip()
            if self._awaits_end and self._form.end.startswith(rest):
                rest = ""
        self._let_out(rest)
        return self._taken()

    def _taken(self) -> Parsed:
        parsed = Parsed("".join(self._content), tuple(self._calls))
        self._content, self._calls = [], []
        return parsed

    def _read(self) -> None:
        """Settle what can be settled of the text that is held."""
        while self._read_call(self._call) if self._call else self._find_call():
            pass

    def _find_call(self) -> bool:
        """Look for the beginning of a call; returns whether there is one."""
        if self._after_call and not self._pass_end():
            return False
        begin, at = self._form.begin, self._held.find(self._form.begin)
        if self._begins_bare():
            space = len(self._held) - len(self._held.lstrip())
            self._call = _Call(space, space + 1)
            return True
        settled = at if at >= 0 else len(self._held) - _num_waiting(self._held, begin)
        settled = len(self._held[:settled].rstrip())  # space before a call is none of its answer
        self._let_out(self._held[:settled])
        self._held = self._held[settled:]
        if at >= 0:
            behind = at - settled + len(begin)
            self._call = _Call(behind, behind, self._form.between)
        return at >= 0

    def _begins_bare(self) -> bool:
        return self._form.is_bare and not self._has_content and self._held.lstrip().startswith("{")

    def _pass_end(self) -> bool:
        """Drop the end of a call and what stands between calls; returns whether anything else has come."""
        self._held = self._held.lstrip()
        end = self._form.end
        if self._awaits_end and self._held:
            if end.startswith(self._held) and self._held != end:
                return False
            self._awaits_end = False
            self._held = self._held.removeprefix(end).lstrip()
        if self._form.is_bare:
            self._held = self._held.lstrip("; \t\r\n")
        return bool(self._held)

    def _read_call(self, call: _Call) -> bool:
        """Read on in a call; returns whether it has ended, as a call or as none."""
        end = call.find_end(self._held)
        if end is None:
            return False
        calls = self._calls_of(call.name, self._held[call.value : end]) if end else []
        if not calls:
            self._refuse(call)
            return True
        self._calls += calls
        self._call, self._held = None, self._held[end:]
        self._after_call, self._awaits_end = True, bool(self._form.end)
        return True

    def _refuse(self, call: _Call) -> None:
        """What looked like the beginning of a call is content."""
        self._call = None
        self._let_out(self._held[: call.start])
        self._held = self._held[call.start :]

    def _let_out(self, content: str) -> None:
        if content:
            self._content.append(content)
            self._has_content, self._after_call = True, False

    def _calls_of(self, name: str, text: str) -> list[ToolCall]:
        """The calls that a JSON value holds; none where one of them is no call."""
        try:
            value = strict_json.parsed(text)
            if self._form.between:
                value = {"name": name, self._form.arguments: value}
            calls = [self._call_of(each) for each in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []
        return [call for call in calls if call] if all(calls) else []

    def _call_of(self, value: Any) -> ToolCall | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get(self._form.arguments, value.get("arguments", {}))
        if not isinstance(arguments, dict):
            return None
        return ToolCall(self._form.new_id(), name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))


class _Call:
    """A call that has begun. ``value`` is where its JSON begins, or space or a name before it. The first
    ``start`` characters of the text are content where it is no call.
    """

    def __init__(self, value: int, start: int, between: str = "") -> None:
        self.value = value
        self.start = start
        self.name = ""
        self._between = between
        self._end: JsonEnd | None = None

    def find_end(self, text: str) -> int | None:
        """The place behind the JSON; 0 where there is none; None where ``text`` does not reach it."""
        if self._between:
            at = text.find(self._between, self.value)
            if at < 0:
                return 0 if len(text) > self.value + _MAX_NAME_CHARACTERS + len(self._between) else None
            self.name = text[self.value : at].strip()
            self.value, self._between = at + len(self._between), ""
        if self._end is None:
            self.value = len(text) - len(text[self.value :].lstrip())
            if self.value == len(text):
                return None
            if text[self.value] not in "{[":
                return 0
            self._end = JsonEnd(self.value)
        return self._end.find(text)


def _num_waiting(text: str, marker: str) -> int:
    """How many of the last characters of ``text`` may be the beginning of ``marker``."""
    lengths = range(min(len(text), len(marker) - 1), 0, -1)
    return next((length for length in lengths if marker.startswith(text[-length:])), 0)
