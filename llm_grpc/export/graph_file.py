"""The graph's file: read, rewritten, written again."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from llm_grpc import graph_names
from llm_grpc.manifest import KvCache

EXTERNAL_FROM_BYTES = 2**30
"""Weights of more than this go to a file of their own, which the runtime maps instead of reading. A graph's
file cannot be larger than 2 GiB."""


def take_graph(path: Path) -> onnx.ModelProto:
    """The graph with its weights, after which its files are gone: the disk holds the weights once."""
    graph = onnx.load(path, load_external_data=False)
    data = {
        entry.value
        for tensor in graph.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    onnx.load_external_data_for_model(graph, str(path.parent))
    for name in (path.name, *data):
        (path.parent / name).unlink()
    return graph


def write_graph(graph: onnx.ModelProto, path: Path, external_from_bytes: int = EXTERNAL_FROM_BYTES) -> None:
    """Write ``graph``, its larger weights to ``<path>.data`` where they are many. Weights that went there are
    no longer in ``graph``.
    """
    size = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    onnx.save(
        graph,
        path,
        save_as_external_data=size >= external_from_bytes,
        location=f"{path.name}.data",
        size_threshold=1024,
    )


def state_interface(
    graph: onnx.ModelProto, vocabulary_size: int, context_tokens: int, kv_cache: KvCache
) -> None:
    """Write into the graph's metadata what a manifest may say of it."""
    stated = {
        "vocabulary_size": vocabulary_size,
        "context_tokens": context_tokens,
        "kv_cache": kv_cache.model_dump(),
    }
    onnx.helper.set_model_props(graph, {graph_names.INTERFACE: json.dumps(stated)})
