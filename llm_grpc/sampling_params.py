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


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when they end. Ranges are those of the v1 contract.

    ``temperature`` 0 is greedy; ``top_p`` 1 and ``top_k`` 0 keep all tokens; ``seed`` is 0 to 2**64 - 1.
    ``ignore_eos`` makes an end-of-sequence token a token like any other. ``returns_tokens`` asks for the ids
    beside the text. A request uses what others of its ``cache_salt`` left in the key-value cache, unless
    ``cache_disabled``: then it computes all of its prompt and leaves nothing. Without ``max_tokens_asked``
    they are the server's default.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    returns_tokens: bool = False
    cache_disabled: bool = False
    cache_salt: str = ""
    max_tokens_asked: bool = True
