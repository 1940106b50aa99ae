"""What is wrong with a form, and where: from the library's messages to one line for the caller."""

from __future__ import annotations

import re
from itertools import pairwise

_LONGEST = 300
"""Characters of a message; some list all there is."""

_PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): (.*)", re.DOTALL)
"""How llguidance begins a message about a grammar: line, column, what."""

_IN_REGEX = re.compile(r"\s*\(in [^()]*\): (?=regex parse error|lookarounds)")


_ADVICE = ". Enable "
"""After this the library advises an option of its own, which callers do not have."""


class ConstraintFault(Exception):
    """A form cannot be used. The message names the place and the cause."""


def grammar_fault(message: str) -> ConstraintFault:
    """What llguidance says of a grammar, with line and column where it names them."""
    found = _PLACE.match(message)
    if found is None:
        return ConstraintFault(cause_of(message))
    line, column, rest = found.groups()
    return ConstraintFault(f"line {line}, column {column}: {cause_of(rest)}")


def regex_fault(message: str, regex: str) -> ConstraintFault:
    """What llguidance says of an expression, with the column where it points at one.

    It writes the expression as a grammar has it; where that is another text, the column would be too.
    """
    found = _PLACE.match(message)
    lines = (found.group(3) if found else message).split("\n")
    for shown, arrow in pairwise(lines):
        if regex in shown and shown.strip() == regex.strip() and arrow.strip(" ").startswith("^"):
            column = arrow.index("^") - shown.index(regex) + 1
            return ConstraintFault(f"column {column}: {cause_of(message)}")
    return ConstraintFault(cause_of(found.group(3) if found else message))


def cause_of(message: str) -> str:
    """One line that says why: the last ``error:`` of a message in several lines, or its beginning."""
    errors = re.findall(r"^error: (.*)", message, re.MULTILINE)
    if errors:
        return f"regular expression: {errors[-1]}"
    first = _IN_REGEX.sub(": ", message.strip()).split("\n")[0].split(_ADVICE)[0].rstrip()
    return first if len(first) <= _LONGEST else first[:_LONGEST] + "…"
