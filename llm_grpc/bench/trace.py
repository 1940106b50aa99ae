"""Workloads from a file.

::

    {"requests": [
      {"prompt_token_ids": [5, 7, 11], "output_tokens": 16},
      {"prompt_tokens": 200, "output_tokens": 64, "arrival_s": 0.25},
      {"prompt_tokens": 20, "output_tokens": 64, "arrival_s": 0.5, "prefix": {"id": "system", "tokens": 512}}
    ]}

A prompt is given as ids or as a count of ids to draw. A prefix is drawn once for each id and stands before
the prompt. Arrival times are seconds since the run's begin and do not decrease.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_grpc.bench.entry import Entry, ModelLimits
from llm_grpc.bench.settings import WorkloadSettings
from llm_grpc.bench.shapes import token_ids
from llm_grpc.errors import BenchError

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Prefix(_Part):
    """What several prompts begin with."""

    id: str
    tokens: Tokens


class TraceRequest(_Part):
    """One request of a trace."""

    prompt_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens
    arrival_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    prefix: Prefix | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt_token_ids is None) == (self.prompt_tokens is None):
            raise ValueError("must have prompt_token_ids or prompt_tokens, one of them")
        return self


class Trace(_Part):
    """The file."""

    requests: Annotated[list[TraceRequest], Field(min_length=1)]


def load_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        BenchError: it cannot be read, is no trace, or contradicts itself; the message names entry, field,
            value and limit.
    """
    try:
        trace = Trace.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BenchError(f"cannot read the trace {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BenchError(f"{path}: {_first_fault(error)}") from None
    _check_order(path, trace)
    _check_prefixes(path, trace)
    return trace


def trace_entries(settings: WorkloadSettings, limits: ModelLimits) -> list[Entry]:
    """Read the trace of the settings and draw what it leaves open.

    Raises:
        BenchError: the file is wrong, or the model does not allow what an entry asks for.
    """
    assert settings.trace is not None
    trace = load_trace(settings.trace)
    return list(_entries(trace, settings, limits))


def _entries(trace: Trace, settings: WorkloadSettings, limits: ModelLimits) -> Iterator[Entry]:
    draw = np.random.default_rng(settings.seed)
    prefixes: dict[str, tuple[int, ...]] = {}
    for index, request in enumerate(trace.requests):
        where = f"{settings.trace}: requests[{index}]"
        given = request.prompt_token_ids or ()
        length = (request.prefix.tokens if request.prefix else 0) + (request.prompt_tokens or len(given))
        limits.check(where, length, request.output_tokens)
        ids = _known_ids(where, given, settings, limits) or token_ids(
            draw, request.prompt_tokens or 0, limits
        )
        if request.prefix:
            if request.prefix.id not in prefixes:
                prefixes[request.prefix.id] = token_ids(draw, request.prefix.tokens, limits)
            ids = prefixes[request.prefix.id] + ids
        yield Entry(ids, request.output_tokens, request.arrival_s)


def _known_ids(
    where: str, ids: list[int] | tuple[()], settings: WorkloadSettings, limits: ModelLimits
) -> tuple[int, ...]:
    size = limits.vocabulary_size
    if settings.wrap_token_ids:
        return tuple(token % size for token in ids)
    for position, token in enumerate(ids):
        if token >= size:
            raise BenchError(
                f"{where}.prompt_token_ids[{position}]: {token} is not below the model's vocabulary_size, "
                f"{size}; --wrap-token-ids maps such ids by modulo"
            )
    return tuple(ids)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    limit = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
    others = error.error_count() - 1
    more = f" (and {others} more)" if others else ""
    if fault["type"] == "missing":
        return f"{where.lstrip('.')}: is missing{more}"
    value = "" if isinstance(fault["input"], dict | list | bytes) else f"the value {fault['input']!r} "
    return f"{where.lstrip('.') or 'the file'}: {value}{limit}{more}"


def _check_order(path: Path, trace: Trace) -> None:
    before = 0.0
    for index, request in enumerate(trace.requests):
        if request.arrival_s < before:
            raise BenchError(
                f"{path}: requests[{index}].arrival_s: {request.arrival_s:g} is before {before:g}, "
                "the time of the request above it"
            )
        before = request.arrival_s


def _check_prefixes(path: Path, trace: Trace) -> None:
    lengths: dict[str, int] = {}
    for index, request in enumerate(trace.requests):
        prefix = request.prefix
        if prefix and lengths.setdefault(prefix.id, prefix.tokens) != prefix.tokens:
            raise BenchError(
                f"{path}: requests[{index}].prefix.tokens: {prefix.tokens} differs from "
                f"{lengths[prefix.id]}, which prefix {prefix.id!r} has above"
            )
