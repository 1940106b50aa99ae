"""Checks of a JSON schema before llguidance has it: what that would pass over, or be lost in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn

from llm_grpc.text.constraint_faults import ConstraintFault
from llm_grpc.text.control_characters import has_unwritten, has_unwritten_atom
from llm_grpc.text.schema_parts import LISTS, MAPS, ONE, escaped, parts_of

MAX_PATTERN_BYTES = 4096
"""All regular expressions of a schema together. The library's work on one grows with its length squared."""

MAX_MULTIPLE = 10_000
"""Least common multiple of all multipleOf, in units of their last decimal place. The library builds a state
for each remainder: 10,000 take 30 ms, 999,983 took 6.6 s and nothing stopped it."""

_MAX_EXPONENT = 20
_ASSERTIONS = {
    "$ref", "const", "enum", "type", "minItems", "maxItems", "required", "minProperties", "maxProperties",
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
}  # fmt: skip
_ANNOTATIONS = {
    "$anchor", "$schema", "$id", "id", "$comment", "title", "description", "default", "readOnly", "writeOnly",
    "examples", "deprecated", "contentMediaType", "contentEncoding",
}  # fmt: skip
_KEYWORDS = ONE | LISTS | MAPS | _ASSERTIONS | _ANNOTATIONS

_DRAFTS = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}
_LATEST = 2020
_SINCE = {"const": 6, "prefixItems": 2020}
_UNTIL = {"additionalItems": 2019, "id": 4}
"""Drafts that know a keyword, where not all do: others pass over it, as the library then does."""


def check_schema(text: str) -> Any:
    """The schema of ``text``, once it is known to say nothing that the library would ignore or be lost in.

    Raises:
        ConstraintFault: it is not JSON, has a keyword that is not served, or one that costs too much.
    """
    schema = _parsed(text)
    draft = _draft(schema)
    multiples: list[Decimal] = []
    pattern_bytes = 0
    for place, part in parts_of(schema):
        _check_part(place, part, draft)
        if isinstance(part, dict):
            multiples += _multiples(place, part)
            patterns = [part.get("pattern", ""), *part.get("patternProperties", ())]
            pattern_bytes += sum(len(pattern.encode()) for pattern in patterns if isinstance(pattern, str))
    if pattern_bytes > MAX_PATTERN_BYTES:
        limit = f"and the limit is {MAX_PATTERN_BYTES}"
        raise ConstraintFault(f"the regular expressions have {pattern_bytes} bytes together, {limit}")
    _check_multiples(multiples)
    return schema


def _parsed(text: str) -> Any:
    try:
        return json.loads(
            text, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_without_repetition
        )
    except json.JSONDecodeError as error:
        raise ConstraintFault(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ConstraintFault("it is nested too deeply") from None
    except ValueError:
        raise ConstraintFault("a number has thousands of digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ConstraintFault(f"{name} is no JSON number")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConstraintFault(f"the key {json.dumps(key)} comes twice in one object")
        found[key] = value
    return found


def _draft(schema: Any) -> int:
    name = schema.get("$schema") if isinstance(schema, dict) else None
    if name is None:
        return _LATEST
    draft = _DRAFTS.get(name.removesuffix("#")) if isinstance(name, str) else None
    if draft is None:
        raise ConstraintFault(
            f"at #/$schema: {json.dumps(name)} is none of the drafts 4, 6, 7, 2019-09, 2020-12"
        )
    return draft


def _check_part(place: str, part: Any, draft: int) -> None:
    if not isinstance(part, dict | bool):
        raise ConstraintFault(f"at {place}: a schema must be an object or a boolean")
    for key, value in part.items() if isinstance(part, dict) else ():
        _check_keyword(f"{place}/{escaped(key)}", key, value, draft)


def _check_keyword(place: str, key: str, value: Any, draft: int) -> None:
    if key not in _KEYWORDS:
        raise ConstraintFault(f"at {place}: this server does not know the keyword")
    if not _SINCE.get(key, 0) <= draft <= _UNTIL.get(key, _LATEST):
        raise ConstraintFault(f"at {place}: the schema's draft does not know the keyword")
    if key in MAPS and not isinstance(value, dict):
        raise ConstraintFault(f"at {place}: must be an object")
    if key in LISTS and not isinstance(value, list):
        raise ConstraintFault(f"at {place}: must be an array")
    if key == "items" and isinstance(value, list) and draft == _LATEST:
        raise ConstraintFault(f"at {place}: must be a schema; draft 2020-12 has prefixItems for several")
    _check_characters(place, key, value)
    if key == "minProperties" and isinstance(value, int | Decimal) and value > 1:
        raise ConstraintFault(f"at {place}: is {value}, and the limit is 1, for a key may come twice")


def _check_characters(place: str, key: str, value: Any) -> None:
    if key in {"const", "enum", "required"}:
        bad = any(has_unwritten(text) for text in _texts(value))
    elif key in MAPS - {"patternProperties"}:
        bad = any(has_unwritten(name) for name in value)
    else:
        patterns = [value] if key == "pattern" else value if key == "patternProperties" else ()
        bad = any(isinstance(pattern, str) and has_unwritten_atom(pattern) for pattern in patterns)
    if bad:
        raise ConstraintFault(f"at {place}: has a control character that JSON can write by its number alone")


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from (name, *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _multiples(place: str, part: dict[str, Any]) -> list[Decimal]:
    value = part.get("multipleOf")
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return []  # the library says so where it is none
    value = Decimal(value)
    if value <= 0 or abs(value.adjusted()) > _MAX_EXPONENT:
        raise ConstraintFault(f"at {place}/multipleOf: is {value}, and must be 1e-{_MAX_EXPONENT} or more")
    return [value]


def _check_multiples(multiples: list[Decimal]) -> None:
    places = max((-int(value.as_tuple().exponent) for value in multiples), default=0)
    common = math.lcm(*(int(value.scaleb(max(places, 0))) for value in multiples))
    if common > MAX_MULTIPLE:
        raise ConstraintFault(
            f"the least common multiple of all multipleOf is {common} in units of their last decimal place, "
            f"and the limit is {MAX_MULTIPLE}"
        )
