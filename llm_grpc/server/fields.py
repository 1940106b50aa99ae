"""Checks of a request message that need nothing but the message."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from llm_grpc.errors import UnsupportedParameter

T = TypeVar("T")

_INLINE_BYTES = 16 * 1024
"""Requests up to this size are looked through in less than a few milliseconds, however small their parts."""


def refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Raise UnsupportedParameter where ``message``, or one inside of it, has a field of another version."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise UnsupportedParameter(
            f"{path or 'request.'}{unknown[0].field_number}: this version knows no such field"
        )
    for field, value in message.ListFields():
        for name, inner in _messages(field.name, value):
            refuse_unknown_fields(inner, f"{path}{name}.")


def _messages(name: str, value: object) -> Iterable[tuple[str, Message]]:
    """The messages of a field, by how a path writes them; those of maps are the library's own."""
    if isinstance(value, Message):
        yield name, value
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | dict):
        yield from ((f"{name}[{at}]", each) for at, each in enumerate(value) if isinstance(each, Message))


async def beside_if_large(request: Message, work: Callable[[], T]) -> T:
    """``work()``, in a worker thread where ``request`` has so many bytes that the event loop would wait."""
    if request.ByteSize() <= _INLINE_BYTES:
        return work()
    return await asyncio.to_thread(work)


def copy_shared_fields(source: Message, target: Message) -> None:
    """Copy what is set of ``source`` into the fields of ``target`` that have the same name and number."""
    known = target.DESCRIPTOR.fields_by_name
    for field, value in source.ListFields():
        other = known.get(field.name)
        if other is None or other.number != field.number:
            continue
        if other.is_repeated:
            getattr(target, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def number(value: float) -> str:
    """A number as an error shows it."""
    return f"{value:g}" if math.isfinite(value) else str(value)
