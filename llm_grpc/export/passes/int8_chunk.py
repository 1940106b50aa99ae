"""A chunk's attention over an int8 cache, computed by the node in fp32.

The node's int8 kernel reads the cache once for every token of a chunk and takes three times as long as the
fp32 one. So the chunk's node gets what is cached already as fp32, a copy as long as the sequence is, and the
codes of its own tokens are put in their places beside it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llm_grpc import graph_names as names
from llm_grpc.export.passes.weights import Array, add_constant

PAST_AT, PRESENT_AT = (3, 4), (1, 2)
"""Places of the caches, keys first, among the inputs and the outputs of the node."""

_NEW_AT = (1, 2)
"""Places of the new keys and values."""


class ChunkCache:
    """Rewrites the chunk's nodes of one graph. Their keys and values come in units of a code."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._anchor = next(iter(graph))
        self._start, self._positions = self._span()
        self._known_places: dict[int, ir.Value] = {}

    def rewrite(self, node: ir.Node) -> None:
        """Let ``node`` read and write its caches, which are of type int8 already."""
        for new_at, past_at, present_at in zip(_NEW_AT, PAST_AT, PRESENT_AT, strict=True):
            past, present = node.inputs[past_at], node.outputs[present_at]
            assert past is not None
            codes = self._round(node, new_at)
            self._read(node, past_at, past)
            self._write(node, past, codes, present)

    def _round(self, node: ir.Node, place: int) -> ir.Value:
        """The codes ``[1, C, kv_heads * d]`` of the new tokens, which ``node`` computes with."""
        one, zero = (
            self._constant("one_step", np.array(1, np.float32)),
            self._constant("middle_code", np.array(0, np.int8)),
        )
        codes = self._before(node, "QuantizeLinear", node.inputs[place], one, zero)
        node.replace_input_with(place, self._before(node, "Cast", codes, to=ir.DataType.FLOAT))
        return codes

    def _read(self, node: ir.Node, place: int, past: ir.Value) -> None:
        """The codes ``[1, kv_heads, start, d]`` of the tokens before the chunk."""
        zero, axis = self._constant("first", np.array([0])), self._constant("token_axis", np.array([2]))
        live = self._before(node, "Slice", past, zero, self._start, axis)
        node.replace_input_with(place, self._before(node, "Cast", live, to=ir.DataType.FLOAT))

    def _write(self, node: ir.Node, past: ir.Value, codes: ir.Value, present: ir.Value) -> None:
        """``present`` is ``past`` with ``codes`` in their places; in its memory, nothing else is moved."""
        assert past.shape is not None
        heads, head_dim = past.shape[1], past.shape[3]
        assert isinstance(heads, int)
        assert isinstance(head_dim, int)
        sizes = self._constant(f"by_head.{heads}.{head_dim}", np.array([0, 0, heads, head_dim]))
        by_token = self._before(node, "Reshape", codes, sizes)
        by_head = self._before(node, "Transpose", by_token, perm=[0, 2, 1, 3])
        written = self._before(node, "ScatterND", past, self._places(heads), by_head)
        written.shape, written.type = present.shape, present.type
        present.name, written.name = f"{present.name}.float", present.name
        present.type = ir.TensorType(ir.DataType.FLOAT)
        outputs = self._graph.outputs
        outputs[outputs.index(present)] = written

    def _places(self, heads: int) -> ir.Value:
        """Where the chunk's tokens stand in a cache, int64 ``[1, heads, C, 3]``: slot, head and position."""
        if heads not in self._known_places:
            of_heads = np.zeros((1, heads, 1, 3), np.int64)
            of_heads[0, :, 0, 1] = np.arange(heads)
            positions = self._first("Mul", self._positions, self._constant("last_of_3", np.array([0, 0, 1])))
            heads_at = self._constant(f"head_places.{heads}", of_heads)
            self._known_places[heads] = self._first("Add", positions, heads_at)
        return self._known_places[heads]

    def _span(self) -> tuple[ir.Value, ir.Value]:
        """The chunk's first position, int64 ``[1]``, and all of them, ``[1, 1, C, 1]``."""
        inputs = {value.name: value for value in self._graph.inputs}
        tokens = self._first("Size", inputs[names.INPUT_IDS])
        num_decode = self._first("Squeeze", inputs[names.NUM_DECODE])
        length = self._first("Sub", tokens, num_decode)
        end = self._first("Cast", inputs[names.CHUNK_TOTAL], to=ir.DataType.INT64)
        start = self._first("Sub", end, length)
        positions = self._first("Range", start, end, self._constant("one_token", np.array(1)))
        return (
            self._first("Reshape", start, self._constant("one_number", np.array([1]))),
            self._first("Reshape", positions, self._constant("by_position", np.array([1, 1, -1, 1]))),
        )

    def _constant(self, name: str, array: Array) -> ir.Value:
        return add_constant(self._graph, f"int8_cache.{name}", array)

    def _first(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a node before all that were there."""
        return self._before(self._anchor, op_type, *inputs, **attributes)

    def _before(
        self, node: ir.Node, op_type: str, *inputs: ir.Value | None, **attributes: int | list[int]
    ) -> ir.Value:
        new = ir.node(op_type, inputs, attributes)
        self._graph.insert_before(node, new)
        return new.outputs[0]
