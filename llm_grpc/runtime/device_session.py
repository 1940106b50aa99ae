"""A session on one device."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

from llm_grpc.devices import Device
from llm_grpc.errors import ManifestError, StartupError
from llm_grpc.runtime.session import open_session

_CUDA = "CUDAExecutionProvider"


def open_on(
    device: Device,
    graph: Path,
    threads: int = 1,
    packs: bool = False,
    weights_bytes: int = 0,
    records: bool = False,
) -> ort.InferenceSession:
    """Load ``graph`` for ``device``; ``threads`` and ``packs`` are for the processor, as of ``open_session``.

    With ``records`` a run on a GPU can be recorded and replayed, which the provider refuses of a graph that
    moves values between the GPU and the processor: a session that loads has no such node.

    Raises:
        ManifestError: the graph is none that this version of ONNX Runtime can run there.
        StartupError: this build of ONNX Runtime is for processors alone.
    """
    if device.kind == "cpu":
        return open_session(graph, threads, packs, weights_bytes)
    if _CUDA not in ort.get_available_providers():
        raise StartupError(
            f"the device is {device}, and this ONNX Runtime is for CPUs: install llm-grpc[cuda]"
        )
    # cuDNN's attention is reported to double tokens on H200.
    os.environ.setdefault("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    settings = {"device_id": str(device.index), "enable_cuda_graph": str(int(records)), "use_tf32": "0"}
    try:
        return ort.InferenceSession(str(graph), options, providers=[(_CUDA, settings)])
    except Exception as error:  # onnxruntime raises its own classes straight under Exception
        raise ManifestError(
            f"cannot load the graph {graph} on {device}: {str(error).splitlines()[0]}"
        ) from error
