"""PagedAttention nodes that take queries, keys and values as one product gives them, and turn them."""

from __future__ import annotations

import onnx_ir as ir

from llm_grpc.export.passes.nodes import paged_nodes
from llm_grpc.export.passes.packed_attention import (
    Source,
    drop_unread,
    let_turn,
    reshaped,
    source_of,
    width_of,
)
from llm_grpc.export.passes.rotary_tables import RotaryTables

TABLES_AT = (8, 9)
"""Places of ``cos_cache`` and ``sin_cache`` among the inputs of the node."""

_QUERY_KEY_VALUE = (0, 1, 2)


_SIZES_FROM_VALUES = frozenset(
    {"Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "SequenceAt", "Unique"}
)
"""Operators that the processor waits for: a mixture's experts are computed for the tokens that chose one."""


def is_recordable(model: ir.Model) -> bool:
    """Whether the sizes of all values follow from those of the inputs."""
    return not any(node.op_type in _SIZES_FROM_VALUES for node in model.graph)


def pack_paged_attention(model: ir.Model, context_tokens: int) -> None:
    """Rewrite the attention of ``model`` where it reads plainly turned values or the parts of one product.

    The tables of angles have ``context_tokens`` rows, a position each.
    """
    graph = model.graph
    tables = RotaryTables(graph, context_tokens)
    for node in list(paged_nodes(graph)):
        packed = [_behind_reshape(node.inputs[place]) for place in _QUERY_KEY_VALUE]
        query, key, value = packed
        source = source_of(query, key, value, tables) if query and key and value else None
        if source:
            _rewrite(graph, node, source, tables)
    drop_unread(model)


def _behind_reshape(value: ir.Value | None) -> ir.Value | None:
    """``[1, T, …]`` of which the trace made ``value [T, …]``."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == "Reshape" else None


def _rewrite(graph: ir.Graph, node: ir.Node, source: Source, tables: RotaryTables) -> None:
    for place in _QUERY_KEY_VALUE:
        tokens = None
        if place < len(source.values):
            value = source.values[place]
            tokens = reshaped(graph, node, value, (-1, width_of(value)))
        node.replace_input_with(place, tokens)
    if source.turn:
        let_turn(node, source.turn, tables, TABLES_AT)
