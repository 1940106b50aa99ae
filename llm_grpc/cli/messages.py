"""What goes to stderr: one line each, plain text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from cyclopts import CycloptsError

if TYPE_CHECKING:
    from cyclopts import Argument, ArgumentCollection, Token
    from pydantic import ValidationError


def fail(message: str, code: int = 1) -> int:
    """Print `message` as one line on stderr and return the exit code."""
    print(f"llm-grpc: {' '.join(message.split())}", file=sys.stderr)
    return code


def usage_error(error: CycloptsError) -> str:
    """Say what is wrong with a command line, a variable or a file: the key, the value, the limit."""
    cause = error.__cause__
    # pydantic is named, not imported: commands that do not use it start in half the time.
    if type(cause).__name__ == "ValidationError" and error.argument is not None:
        return _invalid_fields(cause, error.argument.children)  # type: ignore[arg-type]
    return str(error)


def _invalid_fields(error: ValidationError, arguments: ArgumentCollection) -> str:
    return "; ".join(_invalid_field(dict(fault), arguments) for fault in error.errors(include_url=False))


def _invalid_field(fault: dict[str, Any], arguments: ArgumentCollection) -> str:
    path = fault["loc"]
    field = str(path[0]) if isinstance(path, tuple) and path else ""
    argument = next((a for a in arguments if a.keys[-1:] == (field,)), None)
    name = source(argument) if argument and argument.tokens else field
    return f"{name}: {problem(fault)}"


def problem(fault: dict[str, Any]) -> str:
    """Say what is wrong with one value, as pydantic tells it: the value and the limit."""
    limit = str(fault["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return f"the value {fault['input']!r} {limit}"


def source(argument: Argument) -> str:
    """Name the flag, the variable, or the key and its file, that set an argument."""
    token: Token = argument.tokens[0]
    name = token.keyword or argument.name
    return name if token.source in {"", "cli", "env"} else f"{name} in {token.source}"
