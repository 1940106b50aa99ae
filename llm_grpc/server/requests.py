"""From the contract's requests to the project's own types, with the checks of every field."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from llm_grpc.config import MAX_SALT_BYTES, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, MAX_TEMPERATURE
from llm_grpc.errors import InvalidParameter, PromptTooLong, UnsupportedParameter
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.server.fields import number, refuse_unknown_fields
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.text_request import AnswerOptions, TextRequest
from llm_grpc.v1 import llm_pb2

_LATER = {
    "": {"constraint", "request_id", "priority", "truncate_prompt_tokens"},
    "sampling": {
        "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
        "allowed_token_ids", "banned_token_ids", "n",
    },
    "stopping": {"stop_token_ids", "include_stop", "min_tokens"},
    "response_options": {
        "logprobs", "top_logprobs", "token_text", "prompt_logprobs", "prompt_top_logprobs", "prompt_tokens",
        "echo", "timing", "receipt",
    },
}  # fmt: skip
"""Fields of the contract that are not served yet, by the message that has them."""


def to_text_request(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> TextRequest:
    """Check all of a request, and apply the model's defaults.

    Raises:
        InvalidParameter: a field is out of its limits.
        AdapterNotFound: the model has no adapter of that name.
        PromptTooLong: there are more prompt_token_ids than the model takes.
        UnsupportedParameter: the request holds a field that this version does not know, or names an adapter
            of a model that takes none.
    """
    refuse_unknown_fields(request)
    _refuse_later_fields(request)
    return TextRequest(
        params=_sampling_params(request, model),
        prompt=_prompt(request, model),
        options=AnswerOptions(tokens=request.response_options.tokens),
        adapter=model.adapters.get(request.adapter),
    )


def _sampling_params(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> SamplingParams:
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
        cache_disabled=request.cache.disabled or not model.prefix_reuse,
        cache_salt=_salt(request.cache.salt),
    )


def _prompt(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> str | Sequence[int]:
    """The prompt as a text, or as ids that are known to fit the model."""
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


def _refuse_later_fields(request: llm_pb2.GenerateTextRequest) -> None:
    for part, later in _LATER.items():
        message = getattr(request, part) if part else request
        for field, _ in message.ListFields():
            if field.name in later:
                path = f"{part}.{field.name}" if part else field.name
                raise UnsupportedParameter(f"{path}: this version does not serve it")


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
        raise InvalidParameter(field, f"is {number(value)}, and must be 0 to {MAX_TEMPERATURE:g}")
    return value


def _top_p(value: float) -> float:
    if not 0 < value <= 1:
        raise InvalidParameter("sampling.top_p", f"is {number(value)}, and must be above 0 and at most 1")
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
