"""Which runner a model is served with. The one file of the server that sees the runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from llm_grpc.config import EngineConfig, ModelConfig
from llm_grpc.cpus import threads_to_use
from llm_grpc.devices import Device, parse_devices
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.kv_budget import AUTO_SHARE
from llm_grpc.machine import available_memory_bytes
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.cuda import CPU_PROVIDER, PROVIDER, installed_runtime, require_gpu
from llm_grpc.runtime.logits_memory import most_rows
from llm_grpc.runtime.paged_runner import PagedRunner
from llm_grpc.runtime.placement import place
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.server.served_model import Runtime

log = logging.getLogger(__name__)

_FLOAT32_BYTES = 4


MakeRunner = Callable[[ModelConfig, EngineConfig, Manifest, int, int], ModelRunner]
"""From configuration, manifest, context length and number of blocks (0 of lowering ``slots``) to a runner.
It may block: it runs in a worker thread."""


def runner_for(
    model: ModelConfig, engine: EngineConfig, manifest: Manifest, context_tokens: int, num_blocks: int
) -> ModelRunner:
    """The runner that the manifest's lowering needs, on the devices that the configuration names.

    Raises:
        StartupError: the model cannot be loaded there; the message says why.
    """
    devices = place(engine.device, manifest)
    threads = threads_to_use(engine.threads)
    log.info("computing on %s", ", ".join(map(str, devices)))
    log.info("computing with %d threads: %s", *threads)
    if num_blocks:
        return PagedRunner(
            model.model,
            manifest,
            num_blocks,
            engine.max_running,
            context_tokens,
            engine.chunk_tokens + engine.max_running,
            devices,
            threads=threads.number,
        )
    return SlotRunner(
        model.model, manifest, engine.max_running, context_tokens, threads.number, devices=devices
    )


def runtime_of(engine: EngineConfig, manifest: Manifest) -> Runtime:
    """What computes a model that ``runner_for`` made a runner for."""
    devices = parse_devices(engine.device)
    on_gpu = any(device.kind == "cuda" for device in devices) if devices else manifest.lowering == "paged"
    return Runtime(runtime_version(), PROVIDER if on_gpu else CPU_PROVIDER)


def runtime_version() -> str:
    """Name and version of what computes, such as "onnxruntime 1.31.1"."""
    return installed_runtime()


def _logits_bytes(engine: EngineConfig, manifest: Manifest) -> int:
    """Of the largest step, and of the row that the processor looks at."""
    return (most_rows(engine.max_running) + 1) * manifest.vocabulary_size * _FLOAT32_BYTES


def cache_bytes(engine: EngineConfig, manifest: Manifest) -> int:
    """Memory for keys and values beside weights that are not loaded yet, of the devices that they go to.

    Of several GPUs, which each have their layers' part of a block, the one counts that the fewest blocks fit.
    0 where the configuration says how much. What runs need beside both comes out of the rest.

    Raises:
        StartupError: the model does not run on the device that the configuration names.
    """
    if engine.kv_cache_memory:
        return 0
    devices = place(engine.device, manifest)
    if devices[0].kind == "cpu":
        adapters = 2 * manifest.adapters.num_bytes if manifest.adapters else 0
        return int(AUTO_SHARE * max(available_memory_bytes() - manifest.weights_bytes - adapters, 0))
    stages = range(len(manifest.graphs))
    if len(devices) == 1:
        return _gpu_bytes(engine, manifest, devices[0], stages, 1)
    shares = zip(devices, stages, strict=True)
    return min(_gpu_bytes(engine, manifest, device, (stage,), len(devices)) for device, stage in shares)


def _gpu_bytes(
    engine: EngineConfig, manifest: Manifest, device: Device, stages: Sequence[int], num_batches: int
) -> int:
    """The memory of whole blocks of which ``device`` has room for what ``stages`` have of them.

    The last stage has the logits, of each micro-batch their own. Adapters count as if all were on it.
    """
    room = int(engine.gpu_memory_fraction * require_gpu(device.index).free_bytes)
    room -= sum(map(manifest.stage_bytes, stages))
    room -= manifest.adapters.num_bytes if manifest.adapters else 0
    if len(manifest.graphs) - 1 in stages:
        room -= num_batches * _logits_bytes(engine, manifest)
    layers = manifest.kv_cache.num_layers
    own = min(layers, sum(map(manifest.layers_of, stages)))
    return max(0, room) * layers // own
