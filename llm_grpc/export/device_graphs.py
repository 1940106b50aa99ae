"""The small graphs beside a paged model: what runs on the device between its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_grpc import graph_names as names
from llm_grpc.export.block_copies import block_copies
from llm_grpc.export.graph_file import write_graph
from llm_grpc.export.sampler_graph import sampler_graph
from llm_grpc.manifest import KvCache


def write_device_graphs(
    directory: Path, vocabulary_size: int, kv_cache: KvCache, stage_layers: Sequence[int]
) -> None:
    """Write the graphs that draw tokens and copy blocks of ``kv_cache``, for stages of so many layers each.

    Raises:
        OSError: a file cannot be written.
    """
    first = 0
    for stage, count in enumerate(stage_layers):
        copies = block_copies(kv_cache, range(first, first + count))
        write_graph(copies, directory / names.blocks_graph(stage, len(stage_layers)))
        first += count
    write_graph(sampler_graph(vocabulary_size), directory / names.SAMPLER_GRAPH)
