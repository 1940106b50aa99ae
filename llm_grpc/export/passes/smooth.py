"""Factors that keep a few large features of an input from taking the levels of int8 from the others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llm_grpc.export.passes.linears import Floats, Group, groups_of
from llm_grpc.export.passes.weights import SOURCES, Array, add_weight, array_of, drop_unused, shape_of
from llm_grpc.export.rounding.smooth import Smoothing, smoothing

_NORMS = frozenset({"SimplifiedLayerNormalization", "LayerNormalization"})
_MAX_ROWS, _MAX_COLUMNS = 512, 4096
"""Enough to tell how strong the factors should be."""

_WORTH = 0.9
"""Factors that no norm takes up cost a multiplication in each step: the error has to fall below this part."""


def smooth(model: ir.Model, rows: dict[str, Floats]) -> None:
    """Divide the inputs of layers by factors, and multiply their weights; ``rows`` become those they see now.

    A norm that nothing else reads takes the division into its weights. A tied head is left alone: the
    embeddings have its weights.
    """
    for group in groups_of(model):
        seen = rows.get(group.linears[0].name)
        if seen is None or not len(seen) or any(linear.is_transposed for linear in group.linears):
            continue
        found = smoothing(seen[:_MAX_ROWS], [linear.read()[:, :_MAX_COLUMNS] for linear in group.linears])
        norm = _norm_of(group)
        if found.strength and (norm or found.error < _WORTH * found.plain_error):
            _apply(model.graph, group, norm, found)
            scaled = seen / found.factor
            rows.update((name, scaled) for linear in group.linears for name in linear.sources)


def _norm_of(group: Group) -> ir.Node | None:
    """The norm whose output the group's layers alone read."""
    norm = group.x.producer()
    readers = {user for user, _ in group.x.uses()}
    if norm is None or norm.op_type not in _NORMS or readers != {linear.node for linear in group.linears}:
        return None
    return norm if all(_is_own(value) for value in norm.inputs[1:]) else None


def _is_own(value: ir.Value | None) -> bool:
    return value is None or (SOURCES in value.meta and len(value.uses()) == 1)


def _apply(graph: ir.Graph, group: Group, norm: ir.Node | None, found: Smoothing) -> None:
    inverse = (1 / found.factor).astype(np.float32)
    name = group.linears[0].name
    if norm:
        for place, value in enumerate(norm.inputs):
            if place and value is not None:
                _scale(graph, norm, place, value, inverse)
    else:
        _multiply(
            graph,
            group,
            add_weight(graph, f"{name}.inverse", inverse.shape, ir.DataType.FLOAT, lambda: inverse),
        )
    for linear in group.linears:
        _scale(graph, linear.node, 1, linear.weight, found.factor[:, None])


def _multiply(graph: ir.Graph, group: Group, inverse: ir.Value) -> None:
    """Divide what the group reads in a node of its own."""
    node = ir.node("Mul", [group.x, inverse])
    node.outputs[0].shape, node.outputs[0].type = group.x.shape, group.x.type
    graph.insert_before(group.linears[0].node, node)
    for linear in group.linears:
        linear.node.replace_input_with(0, node.outputs[0])


def _scale(graph: ir.Graph, node: ir.Node, place: int, value: ir.Value, factor: Floats) -> None:
    def make() -> Array:
        return array_of(value).astype(np.float32, copy=False) * factor

    assert value.dtype is not None
    scaled = add_weight(graph, f"{value.name}.smooth", shape_of(value), value.dtype, make)
    scaled.meta[SOURCES] = value.meta[SOURCES]
    node.replace_input_with(place, scaled)
    drop_unused(graph, [value])
