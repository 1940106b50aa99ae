"""Between the contract's messages and the project's own types, with the checks of every field."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from llm_grpc.config import MAX_SALT_BYTES, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, MAX_TEMPERATURE
from llm_grpc.errors import InvalidParameter, PromptTooLong, UnsupportedParameter
from llm_grpc.sampling_params import FinishReason, SamplingParams
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.generator import TextDelta
from llm_grpc.v1 import llm_pb2, model_pb2

_FINISH_REASONS = {
    FinishReason.EOS: llm_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: llm_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: llm_pb2.FINISH_REASON_LENGTH,
    FinishReason.CONTEXT_LIMIT: llm_pb2.FINISH_REASON_CONTEXT_LIMIT,
}


_PARTS = ("sampling", "stopping", "response_options", "cache")
"""The fields of a request that are messages."""


def to_sampling_params(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> SamplingParams:
    """Check all of a request but its prompt, and apply the model's defaults.

    Raises:
        InvalidParameter: a field is out of its limits.
        UnsupportedParameter: the request holds a field that this version does not know.
    """
    _refuse_unknown_fields("", request)
    for part in _PARTS:
        _refuse_unknown_fields(f"{part}.", getattr(request, part))
    sampling, stopping = request.sampling, request.stopping
    temperature = _temperature(request, model)
    return SamplingParams(
        max_tokens=_max_tokens(request.max_tokens, model),
        max_tokens_asked=request.max_tokens != 0,
        temperature=temperature,
        top_p=_top_p(sampling.top_p) if sampling.HasField("top_p") else model.defaults.top_p,
        top_k=_top_k(sampling.top_k) if sampling.HasField("top_k") else model.defaults.top_k,
        seed=_seed(sampling, temperature),
        stop_strings=_stop_strings(stopping),
        ignore_eos=stopping.ignore_eos,
        returns_tokens=request.response_options.tokens,
        cache_disabled=request.cache.disabled or not model.prefix_reuse,
        cache_salt=_salt(request.cache.salt),
    )


def to_prompt(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> str | Sequence[int]:
    """The prompt as a text, or as ids that are known to fit the model.

    Raises:
        InvalidParameter: there is no prompt, there are two, or an id is not in the vocabulary.
        PromptTooLong: there are more ids than the model takes.
    """
    ids = request.prompt_token_ids
    if not ids:
        if not request.prompt:
            raise InvalidParameter("prompt", "must not be empty where there are no prompt_token_ids")
        return request.prompt
    if request.prompt:
        raise InvalidParameter("prompt_token_ids", "must be empty where there is a prompt")
    if len(ids) > model.max_prompt_tokens:
        limit = f"the limit is {model.max_prompt_tokens}"
        raise PromptTooLong("prompt_token_ids", f"has {len(ids)} tokens, and {limit}")
    return _checked_ids(list(ids), model.manifest.vocabulary_size - 1)


def to_response(
    delta: TextDelta, sequence: int, params: SamplingParams, name: str
) -> llm_pb2.GenerateTextResponse:
    """One message of a stream; the fields of the last message are set where the delta has a finish reason."""
    response = llm_pb2.GenerateTextResponse(generated_text=delta.text, sequence=sequence)
    for token in delta.tokens:
        response.tokens.add(id=token)
    if delta.finish_reason:
        response.finish_reason = _FINISH_REASONS[delta.finish_reason]
        response.usage.prompt_tokens = delta.prompt_tokens
        response.usage.completion_tokens = delta.completion_tokens
        response.usage.cached_tokens = delta.cached_tokens
        response.seed = params.seed
        response.model = name
        if delta.stop_string is not None:
            response.stop_string = delta.stop_string
        if delta.stop_token_id is not None:
            response.stop_token_id = delta.stop_token_id
    return response


def to_model(model: ServedModel) -> model_pb2.Model:
    """The description of a model."""
    manifest = model.manifest
    return model_pb2.Model(
        name=model.name,
        kind=model_pb2.MODEL_KIND_DECODER_ONLY,
        limits=model_pb2.Limits(
            context_tokens=model.context_tokens,
            max_prompt_tokens=model.max_prompt_tokens,
            max_tokens=model.max_tokens,
            max_stop_strings=MAX_STOP_STRINGS,
            max_stop_string_bytes=MAX_STOP_STRING_BYTES,
            max_message_bytes=model.max_message_bytes,
        ),
        defaults=model_pb2.Defaults(
            max_tokens=model.default_max_tokens,
            temperature=model.defaults.temperature,
            top_p=model.defaults.top_p,
            top_k=model.defaults.top_k,
        ),
        digest=model.digest,
        architecture=manifest.architecture,
        weights=manifest.weights,
        lowering=manifest.lowering,
        vocabulary_size=manifest.vocabulary_size,
    )


def _refuse_unknown_fields(path: str, message: Message) -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise UnsupportedParameter(
            f"{path or 'request.'}{unknown[0].field_number}: this version knows no such field"
        )


def _max_tokens(value: int, model: ServedModel) -> int:
    if not 0 <= value <= model.max_tokens:
        raise InvalidParameter("max_tokens", f"is {value}, and must be 0 to {model.max_tokens}")
    return value or model.default_max_tokens


def _temperature(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> float:
    field, value = "temperature", request.temperature
    if request.sampling.HasField("temperature"):
        field, value = "sampling.temperature", request.sampling.temperature
    elif value == 0:
        return model.defaults.temperature
    if not 0 <= value <= MAX_TEMPERATURE:
        raise InvalidParameter(field, f"is {_number(value)}, and must be 0 to {MAX_TEMPERATURE:g}")
    return value


def _top_p(value: float) -> float:
    if not 0 < value <= 1:
        raise InvalidParameter("sampling.top_p", f"is {_number(value)}, and must be above 0 and at most 1")
    return value


def _top_k(value: int) -> int:
    if value < 0:
        raise InvalidParameter("sampling.top_k", f"is {value}, and must be 0 or more")
    return value


def _seed(sampling: llm_pb2.Sampling, temperature: float) -> int:
    if sampling.HasField("seed"):
        return sampling.seed
    return secrets.randbits(64) if temperature else 0


def _stop_strings(stopping: llm_pb2.Stopping) -> tuple[str, ...]:
    stops = tuple(stopping.stop_strings)
    if len(stops) > MAX_STOP_STRINGS:
        raise InvalidParameter(
            "stopping.stop_strings", f"has {len(stops)} entries, the limit is {MAX_STOP_STRINGS}"
        )
    for index, stop in enumerate(stops):
        size = len(stop.encode())
        if not 1 <= size <= MAX_STOP_STRING_BYTES:
            limit = f"and must have 1 to {MAX_STOP_STRING_BYTES}"
            raise InvalidParameter(f"stopping.stop_strings[{index}]", f"has {size} bytes of UTF-8, {limit}")
    return stops


def _salt(salt: str) -> str:
    size = len(salt.encode())
    if size > MAX_SALT_BYTES:
        raise InvalidParameter("cache.salt", f"has {size} bytes of UTF-8, and the limit is {MAX_SALT_BYTES}")
    return salt


def _checked_ids(ids: list[int], last: int) -> list[int]:
    if min(ids) < 0 or max(ids) > last:
        index, token = next((i, token) for i, token in enumerate(ids) if not 0 <= token <= last)
        raise InvalidParameter(f"prompt_token_ids[{index}]", f"is {token}, and must be 0 to {last}")
    return ids


def _number(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else str(value)
