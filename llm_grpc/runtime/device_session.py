"""A session on one device."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from llm_grpc.devices import Device
from llm_grpc.runtime.session import open_session


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
        StartupError: the provider of a GPU did not load.
    """
    options = {"enable_cuda_graph": str(int(records))}
    return open_session(graph, threads, packs, weights_bytes, device, options)
