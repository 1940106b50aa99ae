"""From the clients' keyword arguments to a request for scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from llm_grpc.client.options import Prompt
from llm_grpc.client.requests import extend_field, refuse_unknown_options, set_field, set_prompt
from llm_grpc.v1 import llm_pb2


class ScoreOptions(TypedDict, total=False):
    """What a request for scores may ask for besides its texts. What is left out is the server's to choose."""

    top_logprobs: int
    """Tell that many of the likeliest tokens at each place."""

    token_text: bool
    """Tell the text of each token."""

    model: str
    """Name of the model; empty is the server's default."""

    adapter: str
    """Name of the adapter; empty is the model as it is."""

    request_id: str
    """Your name for the request: sent again it is not computed again, and ``cancel`` takes it."""

    priority: int
    """Requests of higher priority go first."""

    cache_disabled: bool
    """Use nothing that earlier requests left in the server's cache, and leave nothing there."""

    cache_salt: str
    """Share the server's cache with requests of the same salt alone."""


def score_request(
    prompt: Prompt, candidates: Sequence[Prompt], options: ScoreOptions
) -> llm_pb2.ScoreTextRequest:
    """Build a request. Ranges are the server's to check.

    Raises:
        ValueError: a value does not fit its field on the wire; the message names the field.
        TypeError: a value is of another type, an option is unknown, or candidates are of two kinds.
    """
    refuse_unknown_options(options, ScoreOptions)
    if isinstance(candidates, str | bytes):
        raise TypeError("candidates are a sequence of texts, not one text")
    request = llm_pb2.ScoreTextRequest()
    set_prompt(request, prompt)
    for candidate in candidates:
        if isinstance(candidate, str | bytes) is not isinstance(candidates[0], str | bytes):
            raise TypeError("candidates are all texts, or all ids")
        if isinstance(candidate, str | bytes):
            extend_field(request, "candidates", (candidate,))
        else:
            extend_field(request.candidate_token_ids.add(), "ids", candidate)
    given: dict[str, Any] = {**options}
    for field in ("top_logprobs", "token_text", "model", "adapter", "request_id", "priority"):
        set_field(request, field, given.get(field))
    set_field(request.cache, "disabled", options.get("cache_disabled") or None)
    set_field(request.cache, "salt", options.get("cache_salt") or None)
    return request
