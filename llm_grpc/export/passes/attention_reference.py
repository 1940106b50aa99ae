"""PagedAttention by its definition, in operators that every machine has.

ONNX Runtime has no kernel of the node for CPUs. The nodes put in its place say the same of the inputs and the
caches, at a cost that grows with the product of the step's tokens and the capacity of all its sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from llm_grpc import graph_names as names
from llm_grpc.export.passes.nodes import input_of
from llm_grpc.export.passes.paged_attention import TABLES_AT
from llm_grpc.export.passes.weights import add_constant

_KEY_CACHE, _HEAD_SINK = 3, 11
_MICROSOFT = "com.microsoft"
_HIDDEN = np.float32(-1e30)
"""Score of what a token does not see; its exponential is 0."""


def with_reference_attention(model: ir.Model) -> None:
    """Replace every PagedAttention node of ``model``, which computes in fp32."""
    nodes = [node for node in model.graph if node.op_type == "PagedAttention"]
    if nodes:
        step = _Step(_Writer(model.graph, nodes[0]), nodes[0].inputs[_KEY_CACHE])
        for node in nodes:
            _Layer(_Writer(model.graph, node), node, step).replace()


class _Writer:
    """Writes nodes in front of one node."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph = graph
        self._before = before

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """The first output of a node."""
        node = ir.node(kind, inputs, attributes, domain=domain)
        self.graph.insert_before(self._before, node)
        return node.outputs[0]

    def split(self, value: ir.Value | None, *sizes: int) -> tuple[ir.Value, ...]:
        """The parts of the last axis."""
        node = ir.node("Split", [value, self.ints(*sizes)], {"axis": -1}, num_outputs=len(sizes))
        self.graph.insert_before(self._before, node)
        return tuple(node.outputs)

    def ints(self, *values: int) -> ir.Value:
        """int64 ``[len(values)]``."""
        return add_constant(self.graph, "ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float | np.float32) -> ir.Value:
        """int64 or fp32 ``[]``."""
        dtype = np.int64 if isinstance(value, int) else np.float32
        return add_constant(self.graph, f"scalar_{np.dtype(dtype).name}_{value}", np.array(value, dtype))

    def size(self, value: ir.Value | None, axis: int) -> ir.Value:
        """One size, ``[]``."""
        return self.op("Squeeze", self.op("Shape", value, start=axis, end=axis + 1))


class _Step:
    """What all layers share: T tokens of B sequences, and N keys, the positions of all that have a block."""

    def __init__(self, write: _Writer, cache: ir.Value | None) -> None:
        self._write = write
        wide = {
            name: write.op("Cast", input_of(write.graph, name), to=ir.DataType.INT64)
            for name in names.PAGED_INPUTS[3:7]
        }
        zero, one = write.scalar(0), write.scalar(1)
        block_size = write.size(cache, 1)
        tokens = write.op("Range", zero, write.size(wide[names.SLOT_MAPPING], 0), one)
        ends = wide[names.SEQUENCE_ENDS]
        later = write.op("Slice", ends, write.ints(1), write.ints(np.iinfo(np.int64).max), write.ints(0))
        ended = write.op("LessOrEqual", later, write.op("Unsqueeze", tokens, write.ints(1)))
        count = write.op("Cast", ended, to=ir.DataType.INT64)
        sequence = write.op("ReduceSum", count, write.ints(1), keepdims=0)
        past = write.op("Gather", wide[names.PAST_LENGTHS], sequence)
        offset = write.op("Sub", tokens, write.op("Gather", ends, sequence))
        self.positions = write.op("Add", past, offset)
        """int64 [T]."""
        self.blocks = write.op("Reshape", wide[names.BLOCK_TABLE], write.ints(-1))
        """int64 [B * places]."""
        length = write.op("Mul", block_size, write.size(wide[names.BLOCK_TABLE], 1))
        total = write.op("Mul", block_size, write.size(self.blocks, 0))
        keys = write.op("Range", zero, total, one)
        self._place = write.op("Mod", keys, length)
        self._rows = write.op("Unsqueeze", self.positions, write.ints(1))
        own = write.op("Equal", write.op("Div", keys, length), write.op("Unsqueeze", sequence, write.ints(1)))
        self._causal = write.op("And", own, write.op("LessOrEqual", self._place, self._rows))
        self._masks: dict[int, ir.Value] = {}
        mapping = wide[names.SLOT_MAPPING]
        self.is_kept = write.op("GreaterOrEqual", mapping, zero)
        """bool [T], which tokens are written."""
        kept = write.op("Compress", mapping, self.is_kept, axis=0)
        parts = [
            write.op("Unsqueeze", write.op(kind, kept, block_size), write.ints(1)) for kind in ("Div", "Mod")
        ]
        self.targets = write.op("Concat", *parts, axis=1)
        """int64 [tokens to write, 2], block and place."""

    def seen(self, window: int) -> ir.Value:
        """Bool ``[T, N]``, which keys each token sees."""
        if window <= 0:
            return self._causal
        if window not in self._masks:
            write = self._write
            first = write.op("Sub", self._rows, write.scalar(window))
            self._masks[window] = write.op("And", self._causal, write.op("Greater", self._place, first))
        return self._masks[window]


class _Layer:
    """One node: K key-value heads of G query heads each, of size D."""

    def __init__(self, write: _Writer, node: ir.Node, step: _Step) -> None:
        self._write, self._node, self._step = write, node, step
        self._kv_heads = node.attributes.get_int("kv_num_heads", 0)
        self._group = node.attributes.get_int("num_heads", 0) // self._kv_heads
        cache = node.inputs[_KEY_CACHE]
        assert cache is not None
        assert cache.shape is not None
        self._head_dim = int(cache.shape[3])

    def replace(self) -> None:
        """Take the node out of the graph."""
        write, node = self._write, self._node
        query, key, value = self._parts()
        outputs = [None, self._cached(key, 0), self._cached(value, 1)]
        outputs[0] = self._attended(query, outputs[1], outputs[2])
        for old, new in zip(node.outputs, outputs, strict=True):
            assert new is not None
            new.type, new.shape = old.type, old.shape
            if old.is_graph_output():
                old.name, new.name = None, old.name
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        write.graph.remove(node, safe=True)

    def _parts(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query ``[T, K * G * D]``, key and value ``[T, K * D]``, turned where the node turns them."""
        query, key, value = self._node.inputs[:3]
        width = self._kv_heads * self._head_dim
        if key is None:
            query, key, value = self._write.split(query, self._group * width, width, width)
        assert query is not None
        assert value is not None
        if self._node.attributes.get_int("do_rotary", 0):
            query = self._turned(query, self._group * self._kv_heads)
            key = self._turned(key, self._kv_heads)
        return query, key, value

    def _turned(self, x: ir.Value, heads: int) -> ir.Value:
        write = self._write
        angles = [self._node.inputs[place] for place in TABLES_AT]
        assert angles[0] is not None
        assert angles[0].shape is not None
        attributes = {
            "num_heads": heads,
            "rotary_embedding_dim": 2 * int(angles[0].shape[1]),
            "interleaved": self._node.attributes.get_int("rotary_interleaved", 0),
        }
        batch = [write.op("Unsqueeze", value, write.ints(0)) for value in (x, self._step.positions)]
        out = write.op("RotaryEmbedding", *batch, *angles, domain=_MICROSOFT, **attributes)
        return write.op("Squeeze", out, write.ints(0))

    def _cached(self, x: ir.Value, kind: int) -> ir.Value:
        """The cache with ``x [T, K * D]`` written to it."""
        write, step = self._write, self._step
        heads = write.op("Reshape", x, write.ints(-1, self._kv_heads, self._head_dim))
        new = write.op("Compress", heads, step.is_kept, axis=0)
        return write.op("ScatterND", self._node.inputs[_KEY_CACHE + kind], step.targets, new)

    def _attended(self, query: ir.Value, keys: ir.Value | None, values: ir.Value | None) -> ir.Value:
        """``[T, K * G * D]``."""
        write, kv_heads, head_dim = self._write, self._kv_heads, self._head_dim
        heads = write.op("Reshape", query, write.ints(-1, kv_heads, self._group, head_dim))
        rows = write.op("Transpose", heads, perm=[1, 2, 0, 3])
        weights, total = self._weights(write.op("MatMul", rows, self._read(keys, [1, 2, 3, 0])))
        out = write.op("Div", write.op("MatMul", weights, self._read(values, [1, 2, 0, 3])), total)
        back = write.op("Transpose", out, perm=[2, 0, 1, 3])
        return write.op("Reshape", back, write.ints(-1, kv_heads * self._group * head_dim))

    def _read(self, cache: ir.Value | None, order: list[int]) -> ir.Value:
        """What all sequences have of a cache, ``[N, K, 1, D]`` with its axes in ``order``."""
        write = self._write
        blocks = write.op("Gather", cache, self._step.blocks)
        return write.op(
            "Transpose",
            write.op("Reshape", blocks, write.ints(-1, self._kv_heads, 1, self._head_dim)),
            perm=order,
        )

    def _weights(self, scores: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Of ``[K, G, T, N]``: exponentials of the same shape, and what their sums are to be divided by."""
        write, node = self._write, self._node
        scale = node.attributes.get_float("scale", 0.0) or self._head_dim**-0.5
        scores = write.op("Mul", scores, write.scalar(scale))
        if cap := node.attributes.get_float("softcap", 0.0):
            bound = write.scalar(cap)
            scores = write.op("Mul", write.op("Tanh", write.op("Div", scores, bound)), bound)
        seen = self._step.seen(node.attributes.get_int("local_window_size", -1))
        scores = write.op("Where", seen, scores, write.scalar(_HIDDEN))
        largest = write.op("ReduceMax", scores, write.ints(-1))
        sink = node.inputs[_HEAD_SINK]
        if sink is not None:
            sink = write.op("Reshape", sink, write.ints(self._kv_heads, self._group, 1, 1))
            largest = write.op("Max", largest, sink)
        weights = write.op("Exp", write.op("Sub", scores, largest))
        total = write.op("ReduceSum", weights, write.ints(-1))
        if sink is not None:
            total = write.op("Add", total, write.op("Exp", write.op("Sub", sink, largest)))
        return weights, total
