"""How many blocks of a paged cache a GPU's memory holds."""

from __future__ import annotations

from llm_grpc.errors import StartupError
from llm_grpc.machine import format_bytes


def gpu_blocks(
    free_bytes: int, fraction: float, weights_bytes: int, block_bytes: int, least_blocks: int
) -> int:
    """Blocks of ``block_bytes`` that fit beside the weights into ``fraction`` of what is free before loading.

    What runs need beside both comes out of the rest.

    Raises:
        StartupError: they are fewer than ``least_blocks``, which one request of the longest context needs.
    """
    num_blocks = max(0, int(free_bytes * fraction) - weights_bytes) // block_bytes
    if num_blocks < least_blocks:
        raise StartupError(
            f"gpu_memory_fraction is {fraction:g} of {format_bytes(free_bytes)} that are free, the weights "
            f"take {format_bytes(weights_bytes)}, and one request's cache needs "
            f"{format_bytes(least_blocks * block_bytes)}: lower max_context_tokens, or use a larger GPU"
        )
    return num_blocks
