"""From the contract's Sampling to the engine's parameters, with the checks of every field."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypedDict

from llm_grpc.config import MAX_LOGIT_BIAS, MAX_PENALTY, MAX_REPETITION_PENALTY, MAX_TEMPERATURE, ModelConfig
from llm_grpc.errors import InvalidParameter
from llm_grpc.server.fields import above_zero, check_length, in_range, token_list, whole_in_range
from llm_grpc.server.served_model import ServedModel
from llm_grpc.v1 import llm_pb2


class SamplingFields(TypedDict):
    """Those of SamplingParams that say how a token is chosen."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    allowed_token_ids: tuple[int, ...]
    banned_token_ids: tuple[int, ...]
    seed: int


def sampling_fields(request: llm_pb2.GenerateTextRequest, model: ServedModel) -> SamplingFields:
    """How a request has its tokens chosen.

    Raises:
        InvalidParameter: a field is out of its limits, or nothing may come.
    """
    sampling, size = request.sampling, model.manifest.vocabulary_size
    temperature = _temperature(request, model.defaults)
    allowed = token_list("sampling.allowed_token_ids", sampling.allowed_token_ids, size)
    banned = token_list("sampling.banned_token_ids", sampling.banned_token_ids, size)
    _check_something_may_come(allowed, banned, size)
    if allowed and not request.stopping.ignore_eos:
        allowed = tuple(dict.fromkeys((*allowed, *model.manifest.eos_token_ids)))
    return SamplingFields(
        **_cuts(sampling, model.defaults),
        **_penalties(sampling, model.defaults),
        temperature=temperature,
        logit_bias=_logit_bias(sampling, size),
        allowed_token_ids=allowed,
        banned_token_ids=banned,
        seed=_seed(sampling, temperature),
    )


def num_sequences(sampling: llm_pb2.Sampling, temperature: float, most: int) -> int:
    """How many sequences there are to be.

    Raises:
        InvalidParameter: too many or none, or several that would be the same one.
    """
    if not sampling.HasField("n"):
        return 1
    n = whole_in_range("sampling.n", sampling.n, 1, most)
    if n > 1 and temperature == 0:
        problem = f"is {n}, and more than 1 needs a temperature above 0: sampling.temperature is 0"
        raise InvalidParameter("sampling.n", problem)
    return n


class _Cuts(TypedDict):
    top_p: float
    top_k: int
    min_p: float
    typical_p: float


class _Penalties(TypedDict):
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float


def _cuts(sampling: llm_pb2.Sampling, defaults: ModelConfig) -> _Cuts:
    cuts = _Cuts(top_p=defaults.top_p, top_k=defaults.top_k, min_p=0.0, typical_p=1.0)
    if sampling.HasField("top_p"):
        cuts["top_p"] = above_zero("sampling.top_p", sampling.top_p, 1)
    if sampling.HasField("top_k"):
        if sampling.top_k < 0:
            raise InvalidParameter("sampling.top_k", f"is {sampling.top_k}, and must be 0 or more")
        cuts["top_k"] = sampling.top_k
    if sampling.HasField("min_p"):
        cuts["min_p"] = in_range("sampling.min_p", sampling.min_p, 0, 1)
    if sampling.HasField("typical_p"):
        cuts["typical_p"] = above_zero("sampling.typical_p", sampling.typical_p, 1)
    return cuts


def _penalties(sampling: llm_pb2.Sampling, defaults: ModelConfig) -> _Penalties:
    penalties = _Penalties(
        repetition_penalty=1.0,
        presence_penalty=defaults.presence_penalty,
        frequency_penalty=defaults.frequency_penalty,
    )
    if sampling.HasField("repetition_penalty"):
        penalties["repetition_penalty"] = above_zero(
            "sampling.repetition_penalty", sampling.repetition_penalty, MAX_REPETITION_PENALTY
        )
    if sampling.HasField("presence_penalty"):
        field, value = "sampling.presence_penalty", sampling.presence_penalty
        penalties["presence_penalty"] = in_range(field, value, -MAX_PENALTY, MAX_PENALTY)
    if sampling.HasField("frequency_penalty"):
        field, value = "sampling.frequency_penalty", sampling.frequency_penalty
        penalties["frequency_penalty"] = in_range(field, value, -MAX_PENALTY, MAX_PENALTY)
    return penalties


def _temperature(request: llm_pb2.GenerateTextRequest, defaults: ModelConfig) -> float:
    field, value = "temperature", request.temperature
    if request.sampling.HasField("temperature"):
        field, value = "sampling.temperature", request.sampling.temperature
    elif value == 0:
        return defaults.temperature
    return in_range(field, value, 0, MAX_TEMPERATURE)


def _logit_bias(sampling: llm_pb2.Sampling, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    if not sampling.logit_bias:
        return ()
    bias = dict(sampling.logit_bias)
    check_length("sampling.logit_bias", bias)
    for token, value in bias.items():
        field = f"sampling.logit_bias[{token}]"
        if not 0 <= token < vocabulary_size:
            raise InvalidParameter(field, f"has a token that is not 0 to {vocabulary_size - 1}")
        in_range(field, value, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
    return tuple(sorted(bias.items()))


def _seed(sampling: llm_pb2.Sampling, temperature: float) -> int:
    if sampling.HasField("seed"):
        return sampling.seed
    return secrets.randbits(64) if temperature else 0


def _check_something_may_come(allowed: Sequence[int], banned: Sequence[int], vocabulary_size: int) -> None:
    field = "sampling.banned_token_ids"
    if allowed and set(allowed) <= set(banned):
        raise InvalidParameter(field, "bans all that sampling.allowed_token_ids allow")
    if len(banned) == vocabulary_size:
        raise InvalidParameter(field, f"bans all {vocabulary_size} tokens of the vocabulary")
