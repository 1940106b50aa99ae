"""From a model directory to a runner that has computed before, and what its steps and its cache may hold."""

from __future__ import annotations

import dataclasses
import logging
from typing import NamedTuple

from llm_grpc.config import EngineConfig, ModelSettings
from llm_grpc.engine.blocks import MAX_CHUNK_TOKENS
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.warm_up import warm_up
from llm_grpc.errors import StartupError
from llm_grpc.manifest import Manifest
from llm_grpc.server.kv_cache import blocks_that_fit, slot_tokens
from llm_grpc.server.runners import MakeRunner, cache_bytes

log = logging.getLogger(__name__)


class WarmRunner(NamedTuple):
    """``num_tokens`` are those that its cache has memory for."""

    runner: ModelRunner
    budget: StepBudget
    num_tokens: int


def context_tokens_of(engine: EngineConfig, manifest: Manifest) -> int:
    """The longest prompt and text together, as far as the configuration and the model say.

    Raises:
        StartupError: the configuration asks for more than the model takes.
    """
    asked = engine.max_context_tokens or manifest.context_tokens
    if not 2 <= asked <= manifest.context_tokens:
        limit = f"the model {manifest.name} takes 2 to {manifest.context_tokens}"
        raise StartupError(f"max_context_tokens is {asked}, and {limit}")
    return asked


def warm_runner(
    settings: ModelSettings, manifest: Manifest, make_runner: MakeRunner, promised_bytes: int
) -> WarmRunner:
    """Load the model and let it compute. Blocks for as long as that takes.

    ``promised_bytes`` of what is available are left to the caches of models that were loaded before.

    Raises:
        StartupError: the model cannot be loaded, or there is no memory for its cache.
    """
    config, block_size = settings.engine, manifest.block_size
    pool_tokens = context_tokens = context_tokens_of(config, manifest)
    num_blocks = 0
    if block_size:
        num_blocks = blocks_that_fit(manifest, config, context_tokens, cache_bytes(config, manifest))
        context_tokens = min(context_tokens, num_blocks * block_size)
    runner = make_runner(settings.model, config, manifest, context_tokens, num_blocks)
    budget = warm_up(
        runner,
        config.max_running,
        min(config.chunk_tokens, context_tokens - 1),
        block_size=block_size,
        max_chunk_tokens=MAX_CHUNK_TOKENS if block_size else None,
        context_tokens=context_tokens,
    )
    mixed_tokens = config.mixed_chunk_tokens or budget.mixed_tokens
    budget = StepBudget(mixed_tokens, budget.num_guesses if config.prompt_lookup else 0)
    log.info(
        "a step takes %(mixed_tokens)d prompt tokens beside decoding requests, and checks "
        "%(num_guesses)d guesses",
        dataclasses.asdict(budget),
    )
    if block_size:
        return WarmRunner(runner, budget, num_blocks * block_size)
    pool_tokens *= config.max_running
    return WarmRunner(
        runner, budget, slot_tokens(manifest, config.kv_cache_memory, pool_tokens, promised_bytes)
    )
