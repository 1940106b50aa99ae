"""The ONNX Runtime session of a model directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from llm_grpc.cpus import threads_to_use
from llm_grpc.devices import CPU, Device
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.cuda import check_providers, session_providers
from llm_grpc.runtime.denormals import flushed_denormals


def is_for_gpu(manifest: Manifest) -> bool:
    """Whether the model computes in 16 bits, for which sessions have kernels on NVIDIA GPUs alone."""
    return manifest.kv_cache.dtype in {"float16", "bfloat16"}


SPINS_FROM_BYTES = 2**28
"""Weights from which threads spin for their next piece of work instead of sleeping.

A thread that spins takes the core from the event loop, which has messages to send just then: a small model
of many steps a second is served at half the rate. With large weights there are few messages, and threads that
sleep between the thousand pieces of a step make a prompt take a fifth longer."""


RECORDED = {"enable_cuda_graph": "1"}
"""For the provider of a GPU: steps of one shape can be recorded and replayed. It refuses a graph that moves
values between the GPU and the processor: a session that loads has no such node."""


def open_session(
    graph: Path,
    threads: int,
    packs: bool = True,
    weights_bytes: int = 0,
    device: Device = CPU,
    device_options: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Load ``graph`` for ``device``, with ``threads`` threads on the CPU; 0 as ``threads_to_use`` says.

    Without ``packs`` the weights stay as they are in the file, mapped where they are in one of their own:
    slower, and no copy of them in memory. ``device_options`` go to the provider of a GPU, which
    ``cuda.require_gpu`` has found usable.

    Raises:
        ManifestError: the file is no graph that this version of ONNX Runtime can run on ``device``.
        StartupError: the provider of a GPU did not load.
    """
    # GroupQueryAttention's flash path was slower than its plain one in every shape measured. Read at load.
    os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    options = _options(threads, packs, weights_bytes)
    providers = session_providers(device, device_options or {})
    try:
        with flushed_denormals(False):
            # Its fallback would compute on the CPU where a GPU fails.
            session = ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises its own classes straight under Exception
        where = "" if device == CPU else f" on {device}"
        first_line = str(error).splitlines()[0]
        raise ManifestError(f"cannot load the graph {graph}{where}: {first_line}") from error
    check_providers(device, session.get_providers())
    return session


def _options(threads: int, packs: bool, weights_bytes: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_to_use(threads).number
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    spins = "1" if weights_bytes >= SPINS_FROM_BYTES else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spins)
    options.log_severity_level = 3
    if not packs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options
