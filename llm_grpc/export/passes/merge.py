"""Queries, keys and values as one product, which the attention reads as it is.

A gate and what it lets through stay two products: what would split them copies each token once more than it
saves, and takes longer than a second product from a few rows on.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llm_grpc.export.passes.linears import Group, Linear, bias_of, groups_of, reaches
from llm_grpc.export.passes.weights import SOURCES, add_constant, add_weight, array_of, drop_unused


def merge_projections(model: ir.Model) -> None:
    """Queries, keys and values of a layer come from one product."""
    for group in groups_of(model):
        linears = group.linears
        is_plain = len(linears) > 1 and not any(linear.is_transposed for linear in linears)
        if is_plain and any(
            all(reaches(linear.node, kind, _ON_THE_WAY) for linear in linears) for kind in _ATTENTION
        ):
            _merge(model.graph, group)


_ATTENTION = ("GroupQueryAttention", "PagedAttention")

_ON_THE_WAY = frozenset(
    {
        "Add",
        "Cast",
        "Mul",
        "Pad",
        "Reshape",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "Slice",
        "Split",
        "Transpose",
    }
)
"""What may stand between a projection and the attention."""


def _merge(graph: ir.Graph, group: Group) -> None:
    linears = group.linears
    sizes = [linear.shape[1] for linear in linears]
    first, dtype = linears[0].node, linears[0].weight.dtype
    assert dtype is not None
    weights = [linear.weight for linear in linears]
    weight = add_weight(
        graph, f"{linears[0].name}.merged", (linears[0].shape[0], sum(sizes)), dtype,
        lambda: np.concatenate([array_of(value) for value in weights], axis=1),
    )  # fmt: skip
    weight.meta[SOURCES] = tuple(name for linear in linears for name in linear.sources)
    new = [ir.node("MatMul", [group.x, weight])]
    last = [_last(linear) for linear in linears]
    if any(node is not linear.node for node, linear in zip(last, linears, strict=True)):
        bias = _bias(graph, linears, sizes, dtype)
        new.append(ir.node("Add", [new[-1].outputs[0], bias]))
    places = add_constant(graph, "sizes_" + "_".join(map(str, sizes)), np.array(sizes))
    split = ir.node("Split", [new[-1].outputs[0], places], {"axis": -1}, num_outputs=len(sizes))
    new.append(split)
    _describe(group.x, new[:-1], sum(sizes))
    graph.insert_before(first, new)
    for old, part in zip(last, split.outputs, strict=True):
        part.shape, part.type = old.outputs[0].shape, old.outputs[0].type
        ir.convenience.replace_all_uses_with(old.outputs[0], part)
    for linear, old in zip(linears, last, strict=True):
        graph.remove([old] if old is linear.node else [old, linear.node], safe=True)
    drop_unused(graph, weights)


def _last(linear: Linear) -> ir.Node:
    return bias_of(linear.node) or linear.node


def _bias(graph: ir.Graph, linears: tuple[Linear, ...], sizes: list[int], dtype: ir.DataType) -> ir.Value:
    values = [_bias_value(linear) for linear in linears]

    def make() -> np.ndarray:
        parts = [
            np.zeros(size, dtype.numpy()) if value is None else array_of(value)
            for value, size in zip(values, sizes, strict=True)
        ]
        return np.concatenate(parts)

    bias = add_weight(graph, f"{linears[0].name}.merged_bias", (sum(sizes),), dtype, make)
    bias.meta[SOURCES] = tuple(value.name for value in values if value is not None)
    return bias


def _bias_value(linear: Linear) -> ir.Value | None:
    add = bias_of(linear.node)
    if add is None:
        return None
    return next(value for value in add.inputs if value is not linear.node.outputs[0])


def _describe(x: ir.Value, nodes: list[ir.Node], width: int) -> None:
    for node in nodes:
        out = node.outputs[0]
        out.type = x.type
        if x.shape is not None:
            out.shape = ir.Shape([*list(x.shape)[:-1], width])
