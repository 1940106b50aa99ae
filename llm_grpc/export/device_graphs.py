"""The small graphs beside a paged model: what runs on the device between its steps."""

from __future__ import annotations

from pathlib import Path

from llm_grpc import graph_names as names
from llm_grpc.export.block_copies import block_copies
from llm_grpc.export.graph_file import write_graph
from llm_grpc.export.sampler_graph import sampler_graph
from llm_grpc.manifest import KvCache


def write_device_graphs(directory: Path, vocabulary_size: int, kv_cache: KvCache) -> None:
    """Write the graphs that copy blocks of ``kv_cache`` and draw tokens.

    Raises:
        OSError: a file cannot be written.
    """
    write_graph(block_copies(kv_cache), directory / names.BLOCKS_GRAPH)
    write_graph(sampler_graph(vocabulary_size), directory / names.SAMPLER_GRAPH)
