"""What an export needs, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_grpc.errors import ExportError
from llm_grpc.export.source import Source
from llm_grpc.machine import available_memory_bytes, format_bytes, free_disk_bytes

_FP32 = 4
_PROTOBUF_LIMIT = 2**31
_RUNTIME_BYTES = 3 * 2**28
"""torch, transformers and ONNX Runtime themselves."""

_INLINE_COPIES, _EXTERNAL_COPIES = 4, 2
"""Weights in memory at the peak, which is optimum's export. Measured above the runtime's own: 4.0 with 100 M
parameters, whose graph is serialised whole; 2.04 with 494 M, whose weights go to files one by one."""


@dataclass(frozen=True)
class Needs:
    """Bytes of fp32 weights in the graph, of the disk at the peak, and about those of memory at the peak."""

    graph_bytes: int
    disk_bytes: int
    memory_bytes: int


def needs_of(source: Source) -> Needs:
    """From the number of parameters alone.

    A graph beyond protobuf's limit is written by torch and again by optimum before the first is deleted.
    Later stages hold the weights once or twice: the graph while it is rewritten, then the exported model,
    then the torch model again.
    """
    traced = _FP32 * (source.num_parameters + source.vocabulary_parameters)
    graph = _FP32 * source.num_parameters
    is_external = traced >= _PROTOBUF_LIMIT
    memory = (_EXTERNAL_COPIES if is_external else _INLINE_COPIES) * traced
    largest = _FP32 * source.vocabulary_parameters
    return Needs(graph, (2 if is_external else 1) * traced, memory + largest + _RUNTIME_BYTES)


def say_needs(source: Source, model_dir: Path) -> str:
    """One line on what is needed and what there is.

    Raises:
        ExportError: the disk has less than is needed. Memory is estimated, and too little of it only said.
    """
    needs, disk = needs_of(source), free_disk_bytes(model_dir)
    if disk < needs.disk_bytes:
        raise ExportError(
            f"{source.name} needs {format_bytes(needs.disk_bytes)} of disk while it is exported, and "
            f"{format_bytes(disk)} are free for {model_dir}"
        )
    memory = available_memory_bytes()
    little = " (less than needed: it may be slow or fail)" if memory < needs.memory_bytes else ""
    return (
        f"{source.num_parameters / 1e6:.1f} M parameters, {format_bytes(needs.graph_bytes)} in fp32; needs "
        f"{format_bytes(needs.disk_bytes)} of disk, {format_bytes(disk)} are free, and about "
        f"{format_bytes(needs.memory_bytes)} of memory, {format_bytes(memory)} are available{little}"
    )
