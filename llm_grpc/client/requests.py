"""From the clients' keyword arguments to request messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from llm_grpc.client.options import GenerateOptions, Prompt
from llm_grpc.v1 import llm_pb2

_OPTIONAL = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "n",
)  # fmt: skip
"""Fields of Sampling that tell unset from 0."""

_PLAIN: dict[str, dict[str, str]] = {
    "": {
        name: name
        for name in ("max_tokens", "model", "request_id", "priority", "adapter", "truncate_prompt_tokens")
    },
    "stopping": {name: name for name in ("include_stop", "min_tokens", "ignore_eos")},
    "response_options": {
        name: name
        for name in (
            "tokens", "logprobs", "top_logprobs", "token_text", "prompt_logprobs", "prompt_top_logprobs",
            "prompt_tokens", "echo", "timing", "receipt",
        )
    },
    "cache": {"disabled": "cache_disabled", "salt": "cache_salt"},
}  # fmt: skip
"""Fields whose 0, False and "" are what the server takes for granted, by message, and their options."""

_LISTS = {
    "sampling": {name: name for name in ("allowed_token_ids", "banned_token_ids")},
    "stopping": {"stop_strings": "stop", "stop_token_ids": "stop_token_ids"},
}
"""Repeated fields, by message, and their options."""

_CONSTRAINTS = ("json_schema", "json_object", "regex", "grammar", "choice")


def generate_request(prompt: Prompt, options: GenerateOptions) -> llm_pb2.GenerateTextRequest:
    """Build a request. Ranges are the server's to check.

    Raises:
        ValueError: a value does not fit its field on the wire; the message names the field. Or there are
            several constraints.
        TypeError: a value is of another type than its option, or there is no such option.
    """
    given: dict[str, Any] = {**options}
    refuse_unknown_options(options, GenerateOptions)
    request = llm_pb2.GenerateTextRequest()
    set_prompt(request, prompt)
    for name in _OPTIONAL:
        set_field(request.sampling, name, given.get(name))
    if bias := given.get("logit_bias"):
        _set_bias(request.sampling, bias)
    _set_plain(request, given)
    _set_lists(request, given)
    _set_constraint(request.constraint, {name: given.get(name) for name in _CONSTRAINTS})
    return request


def _set_plain(request: llm_pb2.GenerateTextRequest, given: dict[str, Any]) -> None:
    for path, fields in _PLAIN.items():
        for field, option in fields.items():
            # Unset, it needs no place on the wire, nor does the message that it is in.
            set_field(getattr(request, path) if path else request, field, given.get(option) or None)


def _set_lists(request: llm_pb2.GenerateTextRequest, given: dict[str, Any]) -> None:
    for path, fields in _LISTS.items():
        for field, option in fields.items():
            if values := _sequence(option, given.get(option) or ()):
                extend_field(getattr(request, path), field, values)


def _set_bias(sampling: llm_pb2.Sampling, bias: Mapping[int, float]) -> None:
    try:
        sampling.logit_bias.update(bias)
    except (ValueError, TypeError) as error:
        raise _misfit("logit_bias", "an entry", error) from error


def _set_constraint(constraint: llm_pb2.Constraint, options: dict[str, Any]) -> None:
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if len(given) > 1:
        raise ValueError(f"one of {' and '.join(given)} may be given")
    for name, value in given.items():
        if name == "choice":
            constraint.choice.SetInParent()
            extend_field(constraint.choice, "choices", _sequence(name, value))
        elif isinstance(value, Mapping):
            set_field(constraint, name, json.dumps(value))
        else:
            set_field(constraint, name, value)


def _sequence(option: str, values: Any) -> Any:
    """``values``, which are no text: that would be a sequence of its characters."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{option} is a sequence, and {values!r} is one text")
    return values


def refuse_unknown_options(options: Mapping[str, Any], kind: type) -> None:
    """Raise TypeError where an option is none of the TypedDict ``kind``."""
    if unknown := options.keys() - kind.__annotations__.keys():
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")


def set_prompt(request: Message, prompt: Prompt) -> None:
    """Set the prompt, a text or ids. Bytes are UTF-8, not ids."""
    if isinstance(prompt, str | bytes):
        set_field(request, "prompt", prompt)
    else:
        extend_field(request, "prompt_token_ids", prompt)


def extend_field(message: Message, field: str, values: Sequence[int | str | bytes]) -> None:
    """Fill one repeated field; an error names it."""
    try:
        getattr(message, field).extend(values)
    except (ValueError, TypeError) as error:
        raise _misfit(field, "a value", error) from error


def set_field(message: Message, field: str, value: float | str | bytes | None) -> None:
    """Set one field, unless the value is None; an error names field and value."""
    if value is None:
        return
    try:
        setattr(message, field, value)
    except (ValueError, TypeError) as error:
        raise _misfit(field, repr(value), error) from error


def _misfit(field: str, value: str, error: Exception) -> Exception:
    # UnicodeEncodeError (a ValueError: half a surrogate pair) takes five arguments, so not type(error).
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{field}: {value} does not fit the field: {error}")
