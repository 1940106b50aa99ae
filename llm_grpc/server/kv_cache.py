"""How much memory the key-value cache gets, and who keeps the books on it."""

from __future__ import annotations

import logging

from llm_grpc.config import EngineConfig
from llm_grpc.engine.blocks import Blocks
from llm_grpc.engine.kv_memory import KvMemory
from llm_grpc.engine.slots import Slots
from llm_grpc.kv_budget import kv_budget, num_blocks
from llm_grpc.machine import available_memory_bytes, format_bytes
from llm_grpc.manifest import Manifest

log = logging.getLogger(__name__)


def slot_tokens(manifest: Manifest, asked_bytes: int, pool_tokens: int, promised_bytes: int) -> int:
    """Tokens that slots may hold together; the model is loaded, so that what is available now can be theirs,
    but for what adapters may take.

    Without an answer in ``asked_bytes`` they leave alone what was promised to other models' slots, which may
    not have touched any of it: ``promised_bytes``.

    Raises:
        StartupError: there is too little memory for any request.
    """
    adapters = 2 * manifest.adapters.num_bytes if manifest.adapters else 0
    available_bytes = max(0, available_memory_bytes() - promised_bytes - adapters)
    budget = kv_budget(asked_bytes, available_bytes, manifest.kv_cache.token_bytes, pool_tokens)
    _log(manifest, budget.num_bytes, f"{budget.num_tokens} tokens of {format_bytes(budget.token_bytes)}")
    return budget.num_tokens


def blocks_that_fit(manifest: Manifest, engine: EngineConfig, context_tokens: int, left_bytes: int) -> int:
    """Blocks of a cache for which ``left_bytes`` are left, unless the configuration says how many.

    Raises:
        StartupError: there is no memory for one.
    """
    size = manifest.block_size or 1
    most = engine.max_running * -(-context_tokens // size)
    token_bytes = manifest.kv_cache.token_bytes
    found = num_blocks(engine.kv_cache_memory, left_bytes, token_bytes, size, most)
    _log(
        manifest,
        found * size * token_bytes,
        f"{found} blocks of {size} tokens of {format_bytes(token_bytes)}",
    )
    return found


def make_memory(manifest: Manifest, max_running: int, context_tokens: int, num_tokens: int) -> KvMemory:
    """The books on a cache that has memory for ``num_tokens``."""
    if manifest.block_size:
        return Blocks(num_tokens // manifest.block_size, manifest.block_size, max_running)
    return Slots(max_running, context_tokens, num_tokens)


def _log(manifest: Manifest, num_bytes: int, words: str) -> None:
    weights, cache = format_bytes(manifest.weights_bytes), format_bytes(num_bytes)
    log.info("weights of %s; up to %s for keys and values, %s", weights, cache, words)
