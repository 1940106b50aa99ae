"""What an export needs, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_grpc.errors import ExportError
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.source import Source
from llm_grpc.machine import available_memory_bytes, format_bytes, free_disk_bytes

_FP32 = 4
_LIBRARIES_BYTES = 2**29
"""torch, transformers and ONNX Runtime themselves."""

_MATRICES = 2
"""Copies in fp32 of the largest matrix, the vocabulary's, that exist at one time."""

_INT8_BITS = 8.0


@dataclass(frozen=True)
class Needs:
    """Bytes of the weights in the graph, of the disk at the peak, and about those of memory at the peak.

    ``memory_bytes`` does not count pages of mapped files, which the system takes back when it needs them.
    """

    graph_bytes: int
    disk_bytes: int
    memory_bytes: int


def is_packed(weights_bytes: int, available_bytes: int) -> bool:
    """Whether a verification lets the runtime rearrange the weights for its kernels, a copy in memory."""
    return weights_bytes <= available_bytes / 2


def needs_of(source: Source, recipe: Recipe, available_bytes: int) -> Needs:
    """From the numbers of parameters, for a machine with ``available_bytes`` of memory.

    Weights are mapped from the source's files and written one matrix at a time, so that the largest matrix
    counts and not the model. A model in 16 bits is verified as a copy in fp32 on a machine without a GPU.
    Stages hold a table of embeddings twice where it is the output projection too.
    """
    parameters = source.num_parameters + (source.vocabulary_parameters if recipe.stages > 1 else 0)
    graph = int(parameters * _bits(recipe) / 8)
    run = _FP32 * parameters if recipe.weights in {"fp16", "bf16"} else graph
    least = _LIBRARIES_BYTES + _MATRICES * _FP32 * source.vocabulary_parameters
    disk = graph + (run if run != graph else 0)
    return Needs(graph, disk, least + (run if is_packed(run, available_bytes) else 0))


def _bits(recipe: Recipe) -> float:
    mean = recipe.mean_bits if recipe.calibrate else recipe.least_bits
    return {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0, "int8": _INT8_BITS, "int4": mean}[recipe.weights]


def say_needs(source: Source, model_dir: Path, recipe: Recipe) -> str:
    """One line on what is needed and what there is.

    Raises:
        ExportError: the disk has less than is needed. Memory is estimated, and too little of it only said.
    """
    disk, memory = free_disk_bytes(model_dir), available_memory_bytes()
    needs = needs_of(source, recipe, memory)
    if disk < needs.disk_bytes:
        raise ExportError(
            f"{source.name} needs {format_bytes(needs.disk_bytes)} of disk while it is exported, and "
            f"{format_bytes(disk)} are free for {model_dir}"
        )
    little = " (less than needed: it may be slow or fail)" if memory < needs.memory_bytes else ""
    more = ", calibration more" if recipe.calibrate else ""
    return (
        f"{source.num_parameters / 1e6:.1f} M parameters, {format_bytes(needs.graph_bytes)} in "
        f"{recipe.weights}; needs {format_bytes(needs.disk_bytes)} of disk, {format_bytes(disk)} are free, "
        f"and about {format_bytes(needs.memory_bytes)} of memory{more}, {format_bytes(memory)} are "
        f"available{little}"
    )
