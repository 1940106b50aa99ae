"""Where a JSON value ends in a growing text."""

from __future__ import annotations


class JsonEnd:
    """Finds the end of the object or list that begins at ``start``. Each character is looked at once."""

    def __init__(self, start: int) -> None:
        self._next = start
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """The place behind the value, None where ``text`` does not reach it. ``text`` may only have grown."""
        while self._next < len(text):
            self._take(text[self._next])
            self._next += 1
            if self._depth == 0:
                return self._next
        return None

    def _take(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
