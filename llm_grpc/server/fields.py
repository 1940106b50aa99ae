"""Checks of a request message that need nothing but the message."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from llm_grpc.config import MAX_TOKEN_LIST
from llm_grpc.errors import InvalidParameter, UnsupportedParameter

T = TypeVar("T")

_SINGLE = struct.Struct("f")

_INLINE_BYTES = 16 * 1024
"""Requests up to this size are looked through in less than a few milliseconds, however small their parts."""


def refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Raise UnsupportedParameter where ``message``, or one inside of it, has a field of another version."""
    refuse_own_unknown_fields(message, path)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for name, inner in _messages(field.name, value):
            refuse_unknown_fields(inner, f"{path}{name}.")


def refuse_own_unknown_fields(message: Message, path: str = "") -> None:
    """The same, but for the messages inside of ``message``."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise UnsupportedParameter(
            f"{path or 'request.'}{unknown[0].field_number}: this version knows no such field"
        )


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
    """A number of a ``float`` field as an error shows it, in as many digits as tell it from others."""
    if not math.isfinite(value) or _SINGLE.unpack(_SINGLE.pack(float(f"{value:g}")))[0] == value:
        return f"{value:g}"
    return f"{value:.9g}"


def in_range(field: str, value: float, least: float, most: float) -> float:
    """``value``, which is finite and ``least`` to ``most``.

    Raises:
        InvalidParameter: it is not.
    """
    if not least <= value <= most:
        raise InvalidParameter(field, f"is {number(value)}, and must be {least:g} to {most:g}")
    return value


def above_zero(field: str, value: float, most: float) -> float:
    """``value``, which is finite, above 0 and at most ``most``.

    Raises:
        InvalidParameter: it is not.
    """
    if not 0 < value <= most:
        raise InvalidParameter(field, f"is {number(value)}, and must be above 0 and at most {most:g}")
    return value


def whole_in_range(field: str, value: int, least: int, most: int) -> int:
    """``value``, which is ``least`` to ``most``.

    Raises:
        InvalidParameter: it is not.
    """
    if not least <= value <= most:
        raise InvalidParameter(field, f"is {value}, and must be {least} to {most}")
    return value


def token_ids(field: str, ids: Sequence[int], vocabulary_size: int) -> Sequence[int]:
    """``ids``, which are of the vocabulary.

    Raises:
        InvalidParameter: one is not; the field has its place.
    """
    last = vocabulary_size - 1
    if ids and (min(ids) < 0 or max(ids) > last):
        at, token = next((at, token) for at, token in enumerate(ids) if not 0 <= token <= last)
        raise InvalidParameter(f"{field}[{at}]", f"is {token}, and must be 0 to {last}")
    return ids


def token_list(field: str, ids: Sequence[int], vocabulary_size: int) -> tuple[int, ...]:
    """``ids``, each once, of a list that is no longer than lists of tokens may be.

    Raises:
        InvalidParameter: it is longer, or has an id that is not of the vocabulary.
    """
    if not ids:
        return ()
    check_length(field, ids)
    return tuple(dict.fromkeys(token_ids(field, ids, vocabulary_size)))


def check_length(field: str, entries: Collection[object]) -> None:
    """Raise InvalidParameter where there are more ``entries`` than a list of tokens may have."""
    if len(entries) > MAX_TOKEN_LIST:
        raise InvalidParameter(field, f"has {len(entries)} entries, and the limit is {MAX_TOKEN_LIST}")
