"""From the contract's Stopping to the engine's parameters, with the checks of every field."""

from __future__ import annotations

from typing import TypedDict

from llm_grpc.config import MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS
from llm_grpc.errors import InvalidParameter
from llm_grpc.manifest import Manifest
from llm_grpc.server.fields import token_list
from llm_grpc.server.sampling_fields import SamplingFields
from llm_grpc.v1 import llm_pb2


class StoppingFields(TypedDict):
    """Those of SamplingParams that say what ends a text."""

    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    include_stop: bool
    min_tokens: int
    ignore_eos: bool


def stopping_fields(
    stopping: llm_pb2.Stopping, max_tokens: int, sampling: SamplingFields, manifest: Manifest
) -> StoppingFields:
    """What ends the text of a request besides ``max_tokens``.

    Raises:
        InvalidParameter: a field is out of its limits, or nothing may come before ``min_tokens``.
    """
    if not 0 <= stopping.min_tokens <= max_tokens:
        problem = f"is {stopping.min_tokens}, and must be 0 to max_tokens, which is {max_tokens}"
        raise InvalidParameter("stopping.min_tokens", problem)
    size = manifest.vocabulary_size
    fields = StoppingFields(
        stop_strings=_stop_strings(stopping),
        stop_token_ids=token_list("stopping.stop_token_ids", stopping.stop_token_ids, size),
        include_stop=stopping.include_stop,
        min_tokens=stopping.min_tokens,
        ignore_eos=stopping.ignore_eos,
    )
    if fields["min_tokens"]:
        _check_something_may_come(fields, sampling, manifest)
    return fields


def _stop_strings(stopping: llm_pb2.Stopping) -> tuple[str, ...]:
    stops = tuple(stopping.stop_strings)
    if len(stops) > MAX_STOP_STRINGS:
        raise InvalidParameter(
            "stopping.stop_strings", f"has {len(stops)} entries, and the limit is {MAX_STOP_STRINGS}"
        )
    for index, stop in enumerate(stops):
        size = len(stop.encode())
        if not 1 <= size <= MAX_STOP_STRING_BYTES:
            limit = f"and must have 1 to {MAX_STOP_STRING_BYTES}"
            raise InvalidParameter(f"stopping.stop_strings[{index}]", f"has {size} bytes of UTF-8, {limit}")
    return stops


def _check_something_may_come(stopping: StoppingFields, sampling: SamplingFields, manifest: Manifest) -> None:
    """Before ``min_tokens`` nothing may come that ends the text: something else has to be there."""
    excluded = {*sampling["banned_token_ids"], *stopping["stop_token_ids"]}
    if not stopping["ignore_eos"]:
        excluded.update(manifest.eos_token_ids)
    allowed = sampling["allowed_token_ids"]
    if allowed and excluded.issuperset(allowed):
        raise InvalidParameter(
            "stopping.min_tokens",
            f"is {stopping['min_tokens']}, and sampling.allowed_token_ids allow nothing that may come before",
        )
    if len(excluded) >= manifest.vocabulary_size:
        raise InvalidParameter(
            "stopping.min_tokens",
            f"is {stopping['min_tokens']}, and sampling.banned_token_ids and stopping.stop_token_ids leave "
            "nothing that may come before",
        )
