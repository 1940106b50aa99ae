"""The graph's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.external_data import CallbackInfo
from onnx_ir.serde import SerdeError

from llm_grpc import graph_names
from llm_grpc.manifest import KvCache

EXTERNAL_FROM_BYTES = 2**26
"""Weights of more than this go to a file of their own, which the runtime maps instead of reading. A graph's
file cannot be larger than 2 GiB."""

_SMALL_BYTES = 1024
"""Weights that stay in the graph's file."""


def write_graph(
    model: ir.Model,
    path: Path,
    on_weight: Callable[[int, int], None] = lambda *_: None,
    external_from_bytes: int = EXTERNAL_FROM_BYTES,
) -> None:
    """Write ``model``, its larger weights to ``<path>.data`` where they are many, one after the other.

    ``on_weight`` gets the number of those that are written and of all.

    Raises:
        ExportError: a weight cannot be written in its type.
        OSError: the file cannot be written.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    data = f"{path.name}.data" if size >= external_from_bytes else None

    def told(_: object, info: CallbackInfo) -> None:
        on_weight(info.index + 1, info.total)

    try:
        ir.save(model, path, external_data=data, size_threshold_bytes=_SMALL_BYTES, callback=told)
    except SerdeError as error:
        raise _root(error) from error


def _root(error: BaseException) -> BaseException:
    """What was raised first, where a weight was computed."""
    return error if error.__cause__ is None else _root(error.__cause__)


def state_interface(model: ir.Model, vocabulary_size: int, context_tokens: int, kv_cache: KvCache) -> None:
    """Write into the graph's metadata what a manifest may say of it."""
    stated = {
        "vocabulary_size": vocabulary_size,
        "context_tokens": context_tokens,
        "kv_cache": kv_cache.model_dump(),
    }
    model.metadata_props[graph_names.INTERFACE] = json.dumps(stated)
