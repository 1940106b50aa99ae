"""Attention nodes that take queries, keys and values as one product gives them, and turn them themselves.

What the trace writes between a product and the attention copies every token several times: the product is
split into queries, keys and values, two of them are turned, and each is split into the decode rows and the
chunk. ``GroupQueryAttention`` does all of that but the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from llm_grpc import graph_names as names
from llm_grpc.export.passes.nodes import attention_nodes, input_of
from llm_grpc.export.passes.rotary_tables import RotaryTables
from llm_grpc.export.passes.weights import add_constant

_QUERY_KEY_VALUE = (0, 1, 2)
_TABLES_AT = (7, 8)
"""Places of ``cos_cache`` and ``sin_cache`` among the inputs of the node."""
_PACKED_RANK = 3
_HEAD_DIM_STEP = 16
"""The node turns heads of a multiple of this."""


@dataclass(frozen=True)
class _Source:
    """What a layer's attention reads: ``values`` of all tokens, one or three, and what turns them."""

    values: tuple[ir.Value, ...]
    turn: ir.Node | None


def pack_attention(model: ir.Model, context_tokens: int) -> None:
    """Rewrite the attention of ``model`` where it reads plainly turned values or the parts of one product.

    The tables of angles have ``context_tokens`` rows, a position each.
    """
    graph = model.graph
    tables = RotaryTables(graph, context_tokens)
    nodes = list(attention_nodes(graph))
    for (_, _, decode), (_, _, chunk) in zip(nodes[::2], nodes[1::2], strict=True):
        source = _source(graph, decode, chunk, tables)
        if source:
            _rewrite(graph, decode, chunk, source, tables)
    common.RemoveUnusedNodesPass()(model)
    for unused in [x for x in graph.inputs if x.name == names.POSITION_IDS and not x.uses()]:
        graph.inputs.remove(unused)


def _source(graph: ir.Graph, decode: ir.Node, chunk: ir.Node, tables: RotaryTables) -> _Source | None:
    """What to read instead; None where nothing is gained or the trace wrote something else."""
    split = input_of(graph, names.SPLIT)
    found = [_all_tokens(decode.inputs[place], chunk.inputs[place], split) for place in _QUERY_KEY_VALUE]
    if None in found:
        return None
    query, key, value = (x for x in found if x is not None)
    turn = _turn(query, key, tables)
    if turn:
        query, key = _turned(query), _turned(key)
    whole = _product(query, key, value)
    if whole:
        return _Source((whole,), turn)
    return _Source((query, key, value), turn) if turn else None


def _all_tokens(decode: ir.Value | None, chunk: ir.Value | None, split: ir.Value) -> ir.Value | None:
    """The value that is split into what the two halves read."""
    if decode is None or chunk is None:
        return None
    moved, parts = decode.producer(), chunk.producer()
    if moved is None or parts is None or (moved.op_type, parts.op_type) != ("Transpose", "Split"):
        return None
    is_split = parts.inputs[1] is split and moved.inputs[0] is parts.outputs[0] and chunk is parts.outputs[1]
    return parts.inputs[0] if is_split else None


def _turn(query: ir.Value, key: ir.Value, tables: RotaryTables) -> ir.Node | None:
    """The rotation of the queries, if the keys' is the same and a table of positions can say it."""
    first, second = query.producer(), key.producer()
    if first is None or second is None or {first.op_type, second.op_type} != {"RotaryEmbedding"}:
        return None
    if first.inputs[1:] != second.inputs[1:] or _manner(first) != _manner(second):
        return None
    head_dim = _manner(first)[0]
    is_packed = query.shape is not None and len(query.shape) == _PACKED_RANK
    if not is_packed or not head_dim or head_dim % _HEAD_DIM_STEP:
        return None
    return first if tables.have(first.inputs[2], first.inputs[3]) else None


def _manner(turn: ir.Node) -> tuple[int, int, int]:
    """The size of a head, 0 if the node does not say it, the part that is turned, and which columns pair."""
    heads, part = turn.attributes.get_int("num_heads", 0), turn.attributes.get_int("rotary_embedding_dim", 0)
    shape = turn.outputs[0].shape
    width = shape[-1] if shape is not None else 0
    head_dim = width // heads if heads and isinstance(width, int) else 0
    return head_dim, part, turn.attributes.get_int("interleaved", 0)


def _turned(value: ir.Value) -> ir.Value:
    node = value.producer()
    assert node is not None
    source = node.inputs[0]
    assert source is not None
    return source


def _product(query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value | None:
    """The value whose parts these are, in this order and nothing else."""
    node = query.producer()
    if node is None or node.op_type != "Split" or tuple(node.outputs) != (query, key, value):
        return None
    source = node.inputs[0]
    is_packed = source is not None and source.shape is not None and len(source.shape) == _PACKED_RANK
    return source if is_packed and node.attributes.get_int("axis", 0) in (-1, _PACKED_RANK - 1) else None


def _rewrite(graph: ir.Graph, decode: ir.Node, chunk: ir.Node, source: _Source, tables: RotaryTables) -> None:
    first = min(decode, chunk, key=list(graph).index)
    out = decode.outputs[0]
    back = next(iter(out.uses())).node
    for place in _QUERY_KEY_VALUE:
        value = source.values[place] if place < len(source.values) else None
        halves = _halves(graph, first, value) if value is not None else (None, None)
        for node, half in zip((decode, chunk), halves, strict=True):
            node.replace_input_with(place, half)
    # [D, 1, h] becomes [1, D, h] without a copy, which a transposition would make.
    moved = ir.node("Reshape", [out, _sizes(graph, 1, -1, _width(back.outputs[0]))])
    moved.outputs[0].shape, moved.outputs[0].type = back.outputs[0].shape, back.outputs[0].type
    graph.insert_before(back, moved)
    ir.convenience.replace_all_uses_with(back.outputs[0], moved.outputs[0])
    if source.turn:
        for node in (decode, chunk):
            _let_turn(node, source.turn, tables)


def _halves(graph: ir.Graph, before: ir.Node, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The decode rows ``[D, 1, h]`` and the chunk ``[1, C, h]`` of ``value [1, T, h]``."""
    split = ir.node("Split", [value, input_of(graph, names.SPLIT)], {"axis": 1}, num_outputs=2)
    rows = ir.node("Reshape", [split.outputs[0], _sizes(graph, -1, 1, _width(value))])
    graph.insert_before(before, [split, rows])
    for made in (*split.outputs, rows.outputs[0]):
        made.type = value.type
    return rows.outputs[0], split.outputs[1]


def _let_turn(node: ir.Node, turn: ir.Node, tables: RotaryTables) -> None:
    node.resize_inputs(max(len(node.inputs), _TABLES_AT[-1] + 1))
    for place, angle in zip(_TABLES_AT, turn.inputs[2:4], strict=True):
        node.replace_input_with(place, tables.of(angle))
    for name, value in (("do_rotary", 1), ("rotary_interleaved", turn.attributes.get_int("interleaved", 0))):
        node.attributes[name] = ir.AttrInt64(name, value)


def _sizes(graph: ir.Graph, *sizes: int) -> ir.Value:
    return add_constant(graph, "sizes_" + "_".join(map(str, sizes)), np.array(sizes))


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    width = value.shape[-1]
    assert isinstance(width, int)
    return width
