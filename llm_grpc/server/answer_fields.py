"""From the contract's ResponseOptions to the project's own types, with the checks of every field."""

from __future__ import annotations

from llm_grpc.config import MAX_TOP_LOGPROBS
from llm_grpc.server.fields import whole_in_range
from llm_grpc.text.text_request import AnswerOptions
from llm_grpc.v1 import llm_pb2


def answer_options(options: llm_pb2.ResponseOptions) -> AnswerOptions:
    """What the answer holds besides the text."""
    return AnswerOptions(
        tokens=options.tokens or options.token_text or num_logprobs(options) is not None,
        token_text=options.token_text,
        prompt_tokens=options.prompt_tokens,
        echo=options.echo,
        timing=options.timing,
        receipt=options.receipt,
    )


def num_logprobs(options: llm_pb2.ResponseOptions) -> int | None:
    """How many likeliest tokens are told beside each generated one; None where no logprobs are.

    Raises:
        InvalidParameter: more than the server tells.
    """
    return _num_told("top_logprobs", options.top_logprobs, options.logprobs)


def num_prompt_logprobs(options: llm_pb2.ResponseOptions) -> int | None:
    """The same for the prompt's tokens.

    Raises:
        InvalidParameter: more than the server tells.
    """
    return _num_told("prompt_top_logprobs", options.prompt_top_logprobs, options.prompt_logprobs)


def _num_told(field: str, num_top: int, is_asked: bool) -> int | None:
    num_top = whole_in_range(f"response_options.{field}", num_top, 0, MAX_TOP_LOGPROBS)
    return num_top if is_asked or num_top else None
