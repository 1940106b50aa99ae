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
from llm_grpc.export.passes.nodes import attention_nodes
from llm_grpc.export.passes.rotary_tables import RotaryTables
from llm_grpc.export.passes.weights import add_constant

_QUERY_KEY_VALUE = (0, 1, 2)
_TABLES_AT = (7, 8)
"""Places of ``cos_cache`` and ``sin_cache`` among the inputs of the node."""
_PACKED_RANK = 3
_HEAD_DIM_STEP = 16
"""The node turns heads of a multiple of this."""


@dataclass(frozen=True)
class Source:
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
    drop_unread(model)


def drop_unread(model: ir.Model) -> None:
    """Take out what computed the values that attention no longer reads."""
    graph = model.graph
    common.RemoveUnusedNodesPass()(model)
    for unused in [x for x in graph.inputs if x.name == names.POSITION_IDS and not x.uses()]:
        graph.inputs.remove(unused)


def _source(graph: ir.Graph, decode: ir.Node, chunk: ir.Node, tables: RotaryTables) -> Source | None:
    """What to read instead; None where nothing is gained or the trace wrote something else."""
    found = [_all_tokens(decode.inputs[place], chunk.inputs[place]) for place in _QUERY_KEY_VALUE]
    if None in found:
        return None
    query, key, value = (x for x in found if x is not None)
    return source_of(query, key, value, tables)


def source_of(query: ir.Value, key: ir.Value, value: ir.Value, tables: RotaryTables) -> Source | None:
    """What attention over these ``[1, T, …]`` can read instead; None where nothing is gained."""
    turn = _turn(query, key, tables)
    if turn:
        query, key = _turned(query), _turned(key)
    whole = _product(query, key, value)
    if whole:
        return Source((whole,), turn)
    return Source((query, key, value), turn) if turn else None


def _all_tokens(decode: ir.Value | None, chunk: ir.Value | None) -> ir.Value | None:
    """The value of which the two halves read a part each, as the trace takes the parts."""
    if decode is None or chunk is None:
        return None
    moved, tail = decode.producer(), chunk.producer()
    head = moved.inputs[0].producer() if moved is not None and moved.inputs[0] is not None else None
    if moved is None or head is None or tail is None:
        return None
    is_cut = (moved.op_type, head.op_type, tail.op_type) == ("Transpose", "Slice", "Slice")
    return head.inputs[0] if is_cut and head.inputs[0] is tail.inputs[0] else None


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


def _producer(value: ir.Value | None) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


def _turned(value: ir.Value) -> ir.Value:
    source = _producer(value).inputs[0]
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


def _rewrite(graph: ir.Graph, decode: ir.Node, chunk: ir.Node, source: Source, tables: RotaryTables) -> None:
    first = min(decode, chunk, key=list(graph).index)
    moved, tail = _producer(decode.inputs[0]), _producer(chunk.inputs[0])
    head = _producer(moved.inputs[0])
    for place in _QUERY_KEY_VALUE:
        rows = tokens = None
        if place < len(source.values):
            value = source.values[place]
            tokens = _cut(graph, first, value, tail)
            rows = _cut(graph, first, value, head)
            rows = reshaped(graph, first, rows, (-1, 1, width_of(value)))
        decode.replace_input_with(place, rows)
        chunk.replace_input_with(place, tokens)
    # A transposition would copy what a change of sizes leaves in its place.
    out = decode.outputs[0]
    back = next(iter(out.uses())).node
    old = back.outputs[0]
    new = reshaped(graph, back, out, (1, -1, width_of(old)))
    new.shape = old.shape
    ir.convenience.replace_all_uses_with(old, new)
    if source.turn:
        for node in (decode, chunk):
            let_turn(node, source.turn, tables, _TABLES_AT)


def _cut(graph: ir.Graph, before: ir.Node, value: ir.Value, like: ir.Node) -> ir.Value:
    """The tokens of ``value`` that ``like`` takes of another one."""
    node = ir.node("Slice", [value, *like.inputs[1:]])
    node.outputs[0].type = value.type
    graph.insert_before(before, node)
    return node.outputs[0]


def reshaped(graph: ir.Graph, before: ir.Node, value: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
    """``value`` in other sizes, computed in front of ``before``."""
    constant = add_constant(graph, "sizes_" + "_".join(map(str, sizes)), np.array(sizes))
    node = ir.node("Reshape", [value, constant])
    node.outputs[0].type = value.type
    graph.insert_before(before, node)
    return node.outputs[0]


def let_turn(node: ir.Node, turn: ir.Node, tables: RotaryTables, places: tuple[int, int]) -> None:
    """Let an attention node turn as ``turn`` did, with its cosines and sines as inputs ``places``."""
    node.resize_inputs(max(len(node.inputs), places[-1] + 1))
    for place, angle in zip(places, turn.inputs[2:4], strict=True):
        node.replace_input_with(place, tables.of(angle))
    for name, value in (("do_rotary", 1), ("rotary_interleaved", turn.attributes.get_int("interleaved", 0))):
        node.attributes[name] = ir.AttrInt64(name, value)


def width_of(value: ir.Value) -> int:
    """The last size."""
    assert value.shape is not None
    width = value.shape[-1]
    assert isinstance(width, int)
    return width
