"""Which runner a model is served with. The one file of the server that sees the runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llm_grpc.config import EngineConfig, ModelConfig
from llm_grpc.cpus import threads_to_use
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.paged_runner import PagedRunner
from llm_grpc.runtime.placement import place
from llm_grpc.runtime.slot_runner import SlotRunner

log = logging.getLogger(__name__)

MakeRunner = Callable[[ModelConfig, EngineConfig, Manifest, int, int], ModelRunner]
"""From configuration, manifest, context length and number of blocks (0 of lowering ``slots``) to a runner.
It may block: it runs in a worker thread."""


def runner_for(
    model: ModelConfig, engine: EngineConfig, manifest: Manifest, context_tokens: int, num_blocks: int
) -> ModelRunner:
    """The runner that the manifest's lowering needs, on the device that the configuration names.

    Raises:
        StartupError: the model cannot be loaded there; the message says why.
    """
    device = place(engine.device, manifest)
    threads = threads_to_use(engine.threads)
    log.info("computing on %s", device)
    log.info("computing with %d threads: %s", *threads)
    if num_blocks:
        return PagedRunner(
            model.model,
            manifest,
            num_blocks,
            engine.max_running,
            context_tokens,
            engine.chunk_tokens + engine.max_running,
            device,
            threads=threads.number,
        )
    return SlotRunner(model.model, manifest, engine.max_running, context_tokens, threads.number)
