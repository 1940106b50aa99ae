"""A copy of a half-precision model that computes in fp32, for a machine whose runtime has no kernels for it.

The weights stay what they were rounded to, so that the copy shows that the graph and its weights are right.
What kernels round while they compute is not in it, and of lowering ``paged`` attention is computed by its
definition.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from llm_grpc import graph_names
from llm_grpc.export.device_graphs import write_device_graphs
from llm_grpc.export.graph_file import write_graph
from llm_grpc.export.passes.attention_reference import with_reference_attention
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.session import is_for_gpu

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPED = frozenset({"to", "dtype"})
"""Attributes that hold a type."""


def runnable(model_dir: Path, manifest: Manifest) -> AbstractContextManager[tuple[Path, Manifest]]:
    """The model itself, or ``widened`` of it where it could not run."""
    return widened(model_dir, manifest) if is_for_gpu(manifest) else nullcontext((model_dir, manifest))


@contextmanager
def widened(model_dir: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """A directory with the graphs in fp32, and their manifest; gone at the end.

    It lies inside ``model_dir``, takes twice the disk of the weights there, and is written one weight at a
    time.

    Raises:
        OSError: it cannot be written.
    """
    cache = manifest.kv_cache.model_copy(update={"dtype": "float32"})
    with tempfile.TemporaryDirectory(prefix=".fp32.", dir=model_dir) as scratch:
        directory = Path(scratch)
        for name in manifest.graphs:
            model = ir.load(model_dir / name)
            widen(model)
            if manifest.lowering == "paged":
                with_reference_attention(model)
            if graph_names.INTERFACE in model.metadata_props:
                stated = json.loads(model.metadata_props[graph_names.INTERFACE])
                stated["kv_cache"] = cache.model_dump()
                model.metadata_props[graph_names.INTERFACE] = json.dumps(stated)
            write_graph(model, directory / name)
        if manifest.lowering == "paged":
            layers = manifest.stage_layers or (cache.num_layers,)
            write_device_graphs(directory, manifest.vocabulary_size, cache, layers)
        yield directory, manifest.model_copy(update={"weights": "fp32", "kv_cache": cache})


def widen(model: ir.Model) -> None:
    """Make fp32 of every value, weight and constant of ``model`` that is fp16 or bf16."""
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            _widen_value(value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                node.attributes[name] = _wide_attribute(attribute)
            for value in node.outputs:
                _widen_value(value)


def _widen_value(value: ir.Value) -> None:
    if value.dtype in _HALF:
        value.dtype = ir.DataType.FLOAT
    if value.const_value is not None and value.const_value.dtype in _HALF:
        value.const_value = _wide(value.const_value)


def _wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The same numbers, converted each time they are read."""
    return ir.LazyTensor(
        partial(_converted, tensor),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _converted(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _wide_attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.name in _TYPED and attribute.value in _HALF:
        return ir.AttrInt64(attribute.name, ir.DataType.FLOAT)
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in _HALF:
        return ir.AttrTensor(attribute.name, _converted(attribute.value))
    return attribute
