"""Where chat templates run: Jinja's sandbox with what transformers adds to it, and a bound on its work.

A template is the operator's, who chose the model; what a request puts into it is not. So no request may make
one run for ever: look-ups and calls are counted, products have a size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_PRODUCT = 1_000_000
"""Most items or characters that ``*`` may make, and most bits that ``**`` may."""


class _Count:
    """Counts down, and raises at the end."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SecurityError(f"it takes more than {self._limit} steps")


_count: ContextVar[_Count | None] = ContextVar("_count", default=None)


@contextmanager
def operations(limit: int) -> Iterator[Callable[[], None]]:
    """Let templates of this thread look up and call at most ``limit`` times; yields what counts one more."""
    count = _Count(limit)
    token = _count.set(count)
    try:
        yield count
    finally:
        _count.reset(token)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What a chat template finds around it. ``now`` is the clock for ``strftime_now``.

    ``raise_exception(message)`` raises TemplateError; the filter ``tojson`` writes JSON without escaping
    HTML; ``{% break %}``, ``{% continue %}`` and ``{% generation %}`` are known.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: now().strftime(format)  # noqa: A006 - templates name it

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``."""
        _count_one()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``."""
        _count_one()
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """``obj(...)``."""
        _count_one()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``left * right`` and ``left ** right``."""
        if _size_of_product(operator, left, right) > _MAX_PRODUCT:
            raise SecurityError(f"{operator} makes more than {_MAX_PRODUCT} of something")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}`` marks the model's own words for those who train it. Here it is what is inside."""

    tags = {"generation"}  # noqa: RUF012 - the library's own form

    def parse(self, parser: Parser) -> nodes.Node:
        """The block, called as transformers does it: what is set inside stays inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Macro) -> str:
        return caller()


def _count_one() -> None:
    count = _count.get()
    if count:
        count()


def _size_of_product(operator: str, left: Any, right: Any) -> float:
    if operator == "**":
        both = isinstance(left, int) and isinstance(right, int)
        return left.bit_length() * abs(right) if both else 0
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
            return len(many) * times
    return 0


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
