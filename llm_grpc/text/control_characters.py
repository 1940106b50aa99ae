"""Control characters in a JSON schema: with one way to write each character, some cannot be written.

Generated JSON writes no escapes of four digits. Otherwise a key that the schema names could come once more
in another spelling, with another value. What is left are characters as they are, and the short escapes. The
library leaves out a single character that it cannot write, and so takes ``"a"`` for U+0001 and ``a``.
"""

from __future__ import annotations

import re

_UNWRITTEN = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")

_ATOM = re.compile(
    r"\\(?:x\{(?P<x>[0-9A-Fa-f]+)\}|x(?P<xx>[0-9A-Fa-f]{2})|u\{(?P<u>[0-9A-Fa-f]+)\}|u(?P<uu>[0-9A-Fa-f]{4})"
    r"|U(?P<w>[0-9A-Fa-f]{8})|(?P<letter>.))|(?P<plain>.)",
    re.DOTALL,
)
_LETTERS = {"a": 7, "v": 11, "0": 0}


def has_unwritten(text: str) -> bool:
    """Whether a text has a character that no generated JSON string can have."""
    return _UNWRITTEN.search(text) is not None


def has_unwritten_atom(pattern: str) -> bool:
    """Whether a regular expression asks for such a character where it takes no other.

    In a class it may be an end of a range, or one of those that are left out.
    """
    opened: str | None = None
    atoms = list(_ATOM.finditer(pattern))
    for at, atom in enumerate(atoms):
        plain = atom["plain"]
        if plain == "[" and opened is None:
            opened = pattern[atom.end() : atom.end() + 1]
        elif plain == "]":
            opened = None
        elif _is_unwritten(atom):
            around = {each["plain"] for each in atoms[max(at - 1, 0) : at + 2]}
            if opened != "^" and not (opened and "-" in around):
                return True
    return False


def _is_unwritten(atom: re.Match[str]) -> bool:
    digits = next((atom[name] for name in ("x", "xx", "u", "uu", "w") if atom[name]), None)
    if digits is not None:
        code = int(digits, 16)
    elif atom["letter"]:
        code = _LETTERS.get(atom["letter"], 32)
    else:
        code = ord(atom["plain"])
    return has_unwritten(chr(min(code, 0x80)))
