"""ScoreText: checks, and the answer as the contract writes it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence

from llm_grpc.config import MAX_BATCH_ITEMS, MAX_TOP_LOGPROBS
from llm_grpc.errors import InvalidParameter
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.server.calls import Call
from llm_grpc.server.fields import beside_if_large, refuse_unknown_fields, token_ids, whole_in_range
from llm_grpc.server.models import Models
from llm_grpc.server.requests import checked_salt, text_or_ids
from llm_grpc.server.responses import to_tokens
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.scorer import ScoreRequest
from llm_grpc.v1.llm_pb2 import Score, ScoreTextRequest, ScoreTextResponse


async def scores(
    request: ScoreTextRequest, models: Models, call: Call
) -> AsyncGenerator[ScoreTextResponse, None]:
    """The one answer of ScoreText."""
    model = models.get(request.model)
    asked = await beside_if_large(request, lambda: _score_request(request, model, call))
    found = await model.scorer.score(asked)
    response = ScoreTextResponse(request_id=call.request_id, model=model.name)
    response.usage.prompt_tokens = found.prompt_tokens
    response.usage.completion_tokens = sum(len(text.tokens) for text in found.candidates)
    response.usage.cached_tokens = found.cached_tokens
    response.scores.extend(
        Score(logprob=text.logprob, tokens=to_tokens(text.tokens)) for text in found.candidates
    )
    yield response


def _score_request(request: ScoreTextRequest, model: ServedModel, call: Call) -> ScoreRequest:
    """Check all of a request that needs no tokenizer."""
    refuse_unknown_fields(request)
    return ScoreRequest(
        prompt=text_or_ids(request, model),
        candidates=_candidates(request, model),
        params=SamplingParams(
            max_tokens=1,
            ignore_eos=True,
            num_prompt_logprobs=whole_in_range("top_logprobs", request.top_logprobs, 0, MAX_TOP_LOGPROBS),
            cache_salt=_salt(request, model),
        ),
        token_text=request.token_text,
        priority=call.priority,
        cancellation=call.cancellation,
        adapter=model.adapters.get(request.adapter),
    )


def _salt(request: ScoreTextRequest, model: ServedModel) -> str:
    """What the call's candidates share the cache by. Where they may share it with nobody else, it is a salt
    that nobody else has: without any the prompt would be computed again for whoever comes when all before
    have ended.
    """
    salt = checked_salt(request.cache.salt)
    return secrets.token_hex() if request.cache.disabled or not model.prefix_reuse else salt


def _candidates(request: ScoreTextRequest, model: ServedModel) -> Sequence[str] | Sequence[Sequence[int]]:
    texts, lists = request.candidates, request.candidate_token_ids
    if texts and lists:
        raise InvalidParameter("candidate_token_ids", "must be empty where there are candidates")
    field = "candidate_token_ids" if lists else "candidates"
    if not 1 <= len(texts) + len(lists) <= MAX_BATCH_ITEMS:
        count = len(texts) + len(lists)
        raise InvalidParameter(field, f"has {count} entries, and must have 1 to {MAX_BATCH_ITEMS}")
    for place, empty in enumerate([not text for text in texts] + [not each.ids for each in lists]):
        if empty:
            raise InvalidParameter(f"{field}[{place}]", "must not be empty")
    size = model.manifest.vocabulary_size
    return [*texts] or [token_ids(f"{field}[{at}].ids", [*each.ids], size) for at, each in enumerate(lists)]
