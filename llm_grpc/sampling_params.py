"""What a request asks of the engine, checked and complete: every default is already applied."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FinishReason(enum.Enum):
    """Why a sequence ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CONTEXT_LIMIT = "context_limit"
    CANCELLED = "cancelled"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when they end. Ranges are those of the v1 contract.

    ``temperature`` 0 is greedy; ``top_p`` 1, ``top_k`` 0, ``min_p`` 0 and ``typical_p`` 1 keep all tokens;
    penalties of 0, and a ``repetition_penalty`` of 1, change nothing; ``seed`` is 0 to 2**64 - 1.
    ``logit_bias`` has each token once. ``ignore_eos`` makes an end-of-sequence token a token like any other;
    neither it nor one of ``stop_token_ids`` comes before ``min_tokens``. ``num_logprobs`` of the likeliest
    tokens are told beside each chosen one and its own probability; None asks for neither.
    ``num_prompt_logprobs`` is the same for the prompt's tokens. A request uses what others of its
    ``cache_salt`` left in the key-value cache, unless ``cache_disabled``: then it computes all of its prompt
    and leaves nothing. Without ``max_tokens_asked`` they are the server's default.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    cache_disabled: bool = False
    cache_salt: str = ""
    max_tokens_asked: bool = True
