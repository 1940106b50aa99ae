"""The ONNX Runtime session of a model directory."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest

PROVIDERS = ("CPUExecutionProvider",)
"""What sessions compute with."""


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_for_gpu(manifest: Manifest) -> bool:
    """Whether the model computes in 16 bits, for which sessions have kernels on NVIDIA GPUs alone."""
    return manifest.kv_cache.dtype in {"float16", "bfloat16"} and "CUDAExecutionProvider" not in PROVIDERS


def open_session(graph: Path, threads: int, packs: bool = True) -> ort.InferenceSession:
    """Load ``graph`` for the CPU with ``threads`` threads; 0 means one for each available CPU.

    Without ``packs`` the weights stay as they are in the file, mapped where they are in one of their own:
    slower, and no copy of them in memory.

    Raises:
        ManifestError: the file is no graph that this version of ONNX Runtime can run.
    """
    # GroupQueryAttention's flash path was slower than its plain one in every shape measured. Read at load.
    os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.log_severity_level = 3
    if not packs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return ort.InferenceSession(str(graph), options, providers=list(PROVIDERS))
    except Exception as error:  # onnxruntime raises its own classes straight under Exception
        raise ManifestError(f"cannot load the graph {graph}: {str(error).splitlines()[0]}") from error
