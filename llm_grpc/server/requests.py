"""From the contract's requests to the project's own types, with the checks of every field."""

from __future__ import annotations

from collections.abc import Sequence

from llm_grpc.config import MAX_SALT_BYTES
from llm_grpc.errors import InvalidParameter, PromptTooLong
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.server.answer_fields import answer_options, num_logprobs, num_prompt_logprobs
from llm_grpc.server.fields import refuse_unknown_fields, token_ids, whole_in_range
from llm_grpc.server.sampling_fields import num_sequences, sampling_fields
from llm_grpc.server.served_model import ServedModel
from llm_grpc.server.stopping_fields import stopping_fields
from llm_grpc.text.text_request import TextRequest
from llm_grpc.v1 import llm_pb2


def to_text_request(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> TextRequest:
    """Check all of a request, and apply the model's defaults.

    Raises:
        AdapterNotFound: the model has no adapter of that name.
        InvalidParameter: a field is out of its limits, or two of them make no sense together.
        PromptTooLong: there are more prompt_token_ids than the model takes.
        UnsupportedParameter: the request holds a field that this version does not know, or names an adapter
            of a model that takes none.
    """
    refuse_unknown_fields(request)
    params = _sampling_params(request, model)
    most = model.max_prompt_tokens
    return TextRequest(
        prompt=_prompt(request, model),
        params=params,
        num_sequences=num_sequences(request.sampling, params.temperature, model.max_sequences),
        options=answer_options(request.response_options),
        truncate_tokens=whole_in_range("truncate_prompt_tokens", request.truncate_prompt_tokens, 0, most),
        adapter=model.adapters.get(request.adapter),
    )


def _sampling_params(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> SamplingParams:
    max_tokens = whole_in_range("max_tokens", request.max_tokens, 0, model.max_tokens)
    max_tokens = max_tokens or model.default_max_tokens
    sampling = sampling_fields(request, model)
    return SamplingParams(
        max_tokens=max_tokens,
        max_tokens_asked=request.max_tokens != 0,
        **sampling,
        **stopping_fields(request.stopping, max_tokens, sampling, model.manifest),
        num_logprobs=num_logprobs(request.response_options),
        num_prompt_logprobs=num_prompt_logprobs(request.response_options),
        cache_disabled=request.cache.disabled or not model.prefix_reuse,
        cache_salt=checked_salt(request.cache.salt),
    )


def _prompt(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> str | Sequence[int]:
    """The prompt, of which those tokens that are kept are known to fit the model where it is ids."""
    if not (request.prompt or request.prompt_token_ids):
        raise InvalidParameter("prompt", "must not be empty where there are no prompt_token_ids")
    return text_or_ids(request, model, is_cut=request.truncate_prompt_tokens > 0)


def text_or_ids(
    request: llm_pb2.GenerateTextRequest | llm_pb2.ScoreTextRequest,
    model: ServedModel,
    *,
    is_cut: bool = False,
) -> str | Sequence[int]:
    """The prompt: a text, which may be empty, or ids, which the model takes all unless the prompt ``is_cut``.

    Raises:
        InvalidParameter: there are both, or an id is not of the vocabulary.
        PromptTooLong: there are more ids than the model takes.
    """
    ids = request.prompt_token_ids
    if not ids:
        return request.prompt
    if request.prompt:
        raise InvalidParameter("prompt_token_ids", "must be empty where there is a prompt")
    if len(ids) > model.max_prompt_tokens and not is_cut:
        limit = f"the limit is {model.max_prompt_tokens}"
        raise PromptTooLong("prompt_token_ids", f"has {len(ids)} tokens, and {limit}")
    return token_ids("prompt_token_ids", list(ids), model.manifest.vocabulary_size)


def checked_salt(salt: str) -> str:
    """``salt``; raise InvalidParameter where it is too long."""
    size = len(salt.encode())
    if size > MAX_SALT_BYTES:
        raise InvalidParameter("cache.salt", f"has {size} bytes of UTF-8, and the limit is {MAX_SALT_BYTES}")
    return salt
