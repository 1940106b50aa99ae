"""The ONNX Runtime session of a model directory."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

from llm_grpc.cpus import threads_to_use
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.denormals import flushed_denormals

PROVIDERS = ("CPUExecutionProvider",)
"""What sessions compute with."""


def is_for_gpu(manifest: Manifest) -> bool:
    """Whether the model computes in 16 bits, for which sessions have kernels on NVIDIA GPUs alone."""
    return manifest.kv_cache.dtype in {"float16", "bfloat16"} and "CUDAExecutionProvider" not in PROVIDERS


SPINS_FROM_BYTES = 2**28
"""Weights from which threads spin for their next piece of work instead of sleeping.

A thread that spins takes the core from the event loop, which has messages to send just then: a small model
of many steps a second is served at half the rate. With large weights there are few messages, and threads that
sleep between the thousand pieces of a step make a prompt take a fifth longer."""


def open_session(
    graph: Path, threads: int, packs: bool = True, weights_bytes: int = 0
) -> ort.InferenceSession:
    """Load ``graph`` for the CPU with ``threads`` threads; 0 as ``threads_to_use`` says.

    Without ``packs`` the weights stay as they are in the file, mapped where they are in one of their own:
    slower, and no copy of them in memory.

    Raises:
        ManifestError: the file is no graph that this version of ONNX Runtime can run.
    """
    # GroupQueryAttention's flash path was slower than its plain one in every shape measured. Read at load.
    os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_to_use(threads).number
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    spins = "1" if weights_bytes >= SPINS_FROM_BYTES else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spins)
    options.log_severity_level = 3
    if not packs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        with flushed_denormals(False):
            return ort.InferenceSession(str(graph), options, providers=list(PROVIDERS))
    except Exception as error:  # onnxruntime raises its own classes straight under Exception
        raise ManifestError(f"cannot load the graph {graph}: {str(error).splitlines()[0]}") from error
