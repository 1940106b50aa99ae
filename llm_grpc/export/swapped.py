"""An attribute that is another one for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def swapped(target: Any, name: str, value: Any) -> Iterator[None]:
    """``target.name`` is ``value`` while this is entered; then what it was, the class's own one if it was."""
    own = vars(target)
    had, before = name in own, own.get(name)
    setattr(target, name, value)
    try:
        yield
    finally:
        if had:
            setattr(target, name, before)
        else:
            delattr(target, name)
