"""How much memory the key-value cache may have, in bytes and in tokens."""

from __future__ import annotations

from dataclasses import dataclass

from llm_grpc.errors import StartupError
from llm_grpc.machine import format_bytes

AUTO_SHARE = 0.8
"""Of the memory that is available once the model is loaded; the rest is for requests and neighbours."""

LEAST_TOKENS = 2
"""A prompt and an answer."""


@dataclass(frozen=True)
class KvBudget:
    """``num_tokens`` of ``token_bytes`` each: what requests reserve and slots keep stays within it."""

    num_tokens: int
    token_bytes: int

    @property
    def num_bytes(self) -> int:
        """Memory of all tokens."""
        return self.num_tokens * self.token_bytes


def kv_budget(asked_bytes: int, available_bytes: int, token_bytes: int, pool_tokens: int) -> KvBudget:
    """As many tokens as fit ``asked_bytes``, but no more than the pool's slots hold.

    Where ``asked_bytes`` is 0, it is ``AUTO_SHARE`` of ``available_bytes``.

    Raises:
        StartupError: not even the shortest request fits.
    """
    num_bytes = asked_bytes or int(AUTO_SHARE * available_bytes)
    num_tokens = min(num_bytes // token_bytes, pool_tokens)
    if num_tokens < LEAST_TOKENS:
        asked = f"kv_cache_memory is {format_bytes(num_bytes)}"
        left = f"{format_bytes(available_bytes)} are available beside the model"
        raise StartupError(
            f"{asked if asked_bytes else left}, and {LEAST_TOKENS} tokens of its key-value cache need "
            f"{format_bytes(LEAST_TOKENS * token_bytes)}"
        )
    return KvBudget(num_tokens, token_bytes)


def num_blocks(
    asked_bytes: int, available_bytes: int, token_bytes: int, block_size: int, most_blocks: int | None = None
) -> int:
    """As many blocks of ``block_size`` tokens as fit ``asked_bytes``; where that is 0, ``available_bytes``.

    No more than ``most_blocks``, unless that is None.

    Raises:
        StartupError: not one fits.
    """
    block_bytes = block_size * token_bytes
    num_bytes = asked_bytes or available_bytes
    if num_bytes < block_bytes:
        asked = f"kv_cache_memory is {format_bytes(num_bytes)}"
        left = f"{format_bytes(num_bytes)} are left for keys and values"
        raise StartupError(
            f"{asked if asked_bytes else left}, and a block of {block_size} tokens needs "
            f"{format_bytes(block_bytes)}"
        )
    fitting = num_bytes // block_bytes
    return fitting if most_blocks is None else min(fitting, most_blocks)
