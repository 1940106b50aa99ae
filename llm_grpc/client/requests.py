"""From the clients' keyword arguments to request messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from google.protobuf.message import Message

from llm_grpc.v1 import llm_pb2


class GenerateOptions(TypedDict, total=False):
    """What a request may ask for besides its prompt. What is left out is the server's to choose."""

    max_tokens: int
    """Most tokens to generate; 0 is the server's default."""

    temperature: float | None
    """Divides the logits; 0.0 is greedy; None is the server's default."""

    top_p: float | None
    """Keeps the most likely tokens that reach this probability; None is the server's default."""

    top_k: int | None
    """Keeps this many of the most likely tokens; 0 keeps all; None is the server's default."""

    seed: int | None
    """Makes sampling repeatable; with None the server draws one and reports it."""

    stop: Sequence[str]
    """Texts that end the answer; they are not part of it."""

    ignore_eos: bool
    """An end-of-sequence token does not end the answer."""

    tokens: bool
    """The answer's messages carry token ids beside the text."""

    cache_disabled: bool
    """Use nothing that earlier requests left in the server's cache, and leave nothing there."""

    cache_salt: str
    """Share the server's cache with requests of the same salt alone."""

    adapter: str
    """Name of an adapter of the model; empty is the model as it is."""

    model: str
    """Name of the model; empty is the server's default."""


Prompt = str | Sequence[int]
"""A text, or ids of the model's tokenizer."""


def generate_request(prompt: Prompt, options: GenerateOptions) -> llm_pb2.GenerateTextRequest:
    """Build a request. Ranges are the server's to check.

    Raises:
        ValueError: a value does not fit its field on the wire; the message names the field.
        TypeError: a value is of another type, or an option is unknown.
    """
    if unknown := options.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    stop = options.get("stop", ())
    if isinstance(stop, str):
        raise TypeError("stop is a sequence of texts, not one text")
    request = llm_pb2.GenerateTextRequest()
    if isinstance(prompt, str | bytes):  # bytes are UTF-8, not ids
        _set(request, "prompt", prompt)
    else:
        _extend(request, "prompt_token_ids", prompt)
    _set(request, "max_tokens", options.get("max_tokens"))
    _set(request, "model", options.get("model"))
    _set(request, "adapter", options.get("adapter") or None)
    _set(request.sampling, "temperature", options.get("temperature"))
    _set(request.sampling, "top_p", options.get("top_p"))
    _set(request.sampling, "top_k", options.get("top_k"))
    _set(request.sampling, "seed", options.get("seed"))
    if stop:
        request.stopping.stop_strings.extend(stop)
    # False and "" are what the server takes for granted: they need no place on the wire.
    _set(request.stopping, "ignore_eos", options.get("ignore_eos") or None)
    _set(request.response_options, "tokens", options.get("tokens") or None)
    _set(request.cache, "disabled", options.get("cache_disabled") or None)
    _set(request.cache, "salt", options.get("cache_salt") or None)
    return request


def _extend(message: Message, field: str, values: Sequence[int]) -> None:
    """Fill one repeated field; an error names it."""
    try:
        getattr(message, field).extend(values)
    except (ValueError, TypeError) as error:
        raise _misfit(field, "a value", error) from error


def _set(message: Message, field: str, value: float | str | bytes | None) -> None:
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
