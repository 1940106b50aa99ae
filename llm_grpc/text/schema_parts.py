"""The parts of a JSON schema, and which of them is at fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

_MAX_TRIES = 200
"""Parts that are compiled to find the one at fault."""

ONE = {"items", "additionalItems", "additionalProperties"}
LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
MAPS = {"properties", "patternProperties", "$defs", "definitions"}
"""Keywords whose values are a schema, a list of schemas, or schemas by name."""


def parts_of(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schema and all within it, with their JSON pointers. Who reads on has found the last one sound."""
    left = [("#", schema)]
    while left:
        place, part = left.pop()
        yield place, part
        left += _inner(place, part)


def place_of(schema: Any, error_of: Callable[[str], str], error: str) -> str:
    """The JSON pointer of the innermost part of ``schema`` of which the library says ``error``, too."""
    place, part, tries = "#", schema, 0
    shared = schema if isinstance(schema, dict) else {}
    shared = {key: shared[key] for key in ("$schema", "$defs", "definitions") if key in shared}
    while True:
        for inner_place, inner in _inner(place, part):
            tries += 1
            if tries > _MAX_TRIES:
                return place
            alone = {**shared, **inner} if isinstance(inner, dict) else inner
            if error_of(json.dumps(alone, default=float)) == error:
                place, part = inner_place, inner
                break
        else:
            return place


def _inner(place: str, part: Any) -> list[tuple[str, Any]]:
    """The schemas directly within one that is sound."""
    found: list[tuple[str, Any]] = []
    for key, value in part.items() if isinstance(part, dict) else ():
        if key in MAPS:
            found += [(f"{place}/{key}/{escaped(name)}", inner) for name, inner in value.items()]
        elif key in LISTS or (key == "items" and isinstance(value, list)):
            found += [(f"{place}/{key}/{at}", inner) for at, inner in enumerate(value)]
        elif key in ONE:
            found.append((f"{place}/{key}", value))
    return found


def escaped(name: str) -> str:
    """A name as a JSON pointer writes it."""
    return name.replace("~", "~0").replace("/", "~1")
