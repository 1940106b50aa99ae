"""The weights of a traced graph: computed one at a time, when they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from llm_grpc.errors import ExportError

Array = NDArray[np.generic]

SOURCES = "sources"
"""Key of a value's ``meta``: the names of the parameters that it is made of."""


def add_weight(
    graph: ir.Graph, name: str, shape: tuple[int, ...], dtype: ir.DataType, make: Callable[[], Array]
) -> ir.Value:
    """Register an initializer that ``make`` computes each time it is read."""
    value = ir.Value(name=name)
    _fill(value, shape, dtype, make)
    graph.register_initializer(value)
    return value


def _fill(value: ir.Value, shape: tuple[int, ...], dtype: ir.DataType, make: Callable[[], Array]) -> None:
    value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(make()), dtype=dtype, name=value.name),
        dtype=dtype, shape=ir.Shape(shape), name=value.name,
    )  # fmt: skip


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """The small constant ``name``, one in a graph however often it is asked for."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def drop_unused(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """Drop those initializers that nothing reads, nodes that only turned them included."""
    for value in values:
        for node, _ in list(value.uses()):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                graph.remove(node, safe=True)
        if not value.uses():
            graph.initializers.pop(str(value.name), None)


def array_of(value: ir.Value) -> Array:
    """The numbers of an initializer."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is no initializer")
    found: Array = value.const_value.numpy()
    return found


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The shape of an initializer."""
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())


def attach(model: ir.Model, weights: Mapping[str, torch.Tensor]) -> None:
    """Turn the graph's inputs that ``weights`` names into initializers of the inputs' types."""
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in weights]:
        tensor, dtype = weights[str(value.name)], value.dtype
        assert dtype is not None
        graph.inputs.remove(value)
        if not value.uses():
            continue
        value.meta[SOURCES] = (value.name,)
        _fill(value, tuple(tensor.shape), dtype, _Read(tensor, dtype, str(value.name)))
        graph.register_initializer(value)


class _Read:
    """A tensor as numpy's array of another type, rounded to the nearest.

    Raises:
        ExportError: a number is beyond the largest of that type, which fp16 has at 65504.
    """

    def __init__(self, tensor: torch.Tensor, dtype: ir.DataType, name: str) -> None:
        self._tensor, self._dtype, self._name = tensor.detach(), dtype, name

    def __call__(self) -> Array:
        # numpy has no bfloat16 of its own, so that floats pass through fp32.
        tensor = self._tensor.float() if self._tensor.is_floating_point() else self._tensor
        with np.errstate(over="ignore"):
            found: Array = tensor.numpy().astype(self._dtype.numpy(), copy=False)
        if self._dtype == ir.DataType.FLOAT16 and np.isinf(found).any() and not tensor.isinf().any():
            raise ExportError(f"{self._name} has weights that fp16 cannot hold: choose bf16 or fp32")
        return found


def fold(model: ir.Model) -> None:
    """Compute what the trace does to weights alone, but for the transposition of one used both ways."""
    for node in list(model.graph):
        if node.op_type == "Transpose" and _is_weight(node.inputs[0]):
            _fold_transpose(model.graph, node)
        elif node.op_type == "Add" and any(map(_is_weight, node.inputs)):
            _fold_offset(model.graph, node)
        elif node.op_type == "Cast" and _is_weight(node.inputs[0]):
            _fold_cast(model.graph, node)


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and SOURCES in value.meta


def _fold_transpose(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    if len(source.uses()) > 1 or len(shape_of(source)) != 2:
        return
    rows, columns = shape_of(source)
    _replace(graph, node, source, (columns, rows), lambda: array_of(source).T)


def _fold_offset(graph: ir.Graph, node: ir.Node) -> None:
    """``weight + 1``, which some norms scale by."""
    weight = next(value for value in node.inputs if _is_weight(value))
    other = next((value for value in node.inputs if value is not weight), None)
    number = ir.convenience.get_const_tensor(other) if other else None
    if weight is None or number is None or number.size != 1:
        return
    _replace(graph, node, weight, shape_of(weight), lambda: array_of(weight) + number.numpy())


def _fold_cast(graph: ir.Graph, node: ir.Node) -> None:
    """A weight of 16 bits that is used in fp32, as in norms and in what ranks experts."""
    source = node.inputs[0]
    assert source is not None
    if len(source.uses()) > 1:
        return
    dtype = ir.DataType(node.attributes["to"].as_int())
    _replace(graph, node, source, shape_of(source), lambda: array_of(source).astype(dtype.numpy()), dtype)


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    source: ir.Value,
    shape: tuple[int, ...],
    make: Callable[[], Array],
    dtype: ir.DataType | None = None,
) -> None:
    dtype = dtype or source.dtype
    assert dtype is not None
    out = node.outputs[0]
    folded = add_weight(graph, f"{source.name}.{node.op_type.lower()}", shape, dtype, make)
    folded.meta[SOURCES] = source.meta[SOURCES]
    ir.convenience.replace_all_uses_with(out, folded)
    graph.remove(node, safe=True)
    drop_unused(graph, [source])
