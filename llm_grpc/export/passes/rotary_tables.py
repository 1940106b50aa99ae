"""Cosines and sines of every position, from the nodes that compute them for the positions of a step."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.export.passes.weights import add_weight

MAX_TABLE_BYTES = 2**25
"""Of one table. Longer contexts keep the nodes, which compute a few rows in each step."""

_SOME = 41
"""Positions that are computed on their own, to see that a row depends on its position alone."""

Table = NDArray[np.float32]


class RotaryTables:
    """The tables of one graph, each made once."""

    def __init__(self, graph: ir.Graph, context_tokens: int) -> None:
        self._graph = graph
        self._context_tokens = context_tokens
        self._known: dict[int, tuple[ir.Value, Table | None]] = {}
        self._written: dict[int, ir.Value] = {}

    def have(self, *angles: ir.Value | None) -> bool:
        """Whether there is a table for each of ``angles [T, pairs]``."""
        return all(angle is not None and self._table(angle) is not None for angle in angles)

    def of(self, angle: ir.Value | None) -> ir.Value:
        """The initializer ``[context_tokens, pairs]`` for ``angle``, in its type."""
        assert angle is not None
        table = self._table(angle)
        assert table is not None
        if id(angle) not in self._written:
            dtype, name = angle.dtype or ir.DataType.FLOAT, f"rotary.{len(self._written)}"
            make = partial(table.astype, dtype.numpy())
            self._written[id(angle)] = add_weight(self._graph, name, table.shape, dtype, make)
        return self._written[id(angle)]

    def _table(self, angle: ir.Value) -> Table | None:
        if id(angle) not in self._known:
            self._known[id(angle)] = angle, self._computed(angle)
        return self._known[id(angle)][1]

    def _computed(self, angle: ir.Value) -> Table | None:
        nodes = self._nodes_behind(angle)
        if nodes is None:
            return None
        session = _session(self._graph, nodes, angle)
        others = self._context_tokens - 1  # a step that lacks the last position tells what it changes
        some = np.random.default_rng(0).choice(others, min(_SOME, others), replace=False)
        rows = _run(session, some)
        if rows.ndim != 2 or rows.nbytes // len(some) * self._context_tokens > MAX_TABLE_BYTES:
            return None
        table = _run(session, np.arange(self._context_tokens))
        return table if np.array_equal(table[some], rows) else None

    def _nodes_behind(self, angle: ir.Value) -> list[ir.Node] | None:
        """The nodes that ``angle`` is computed by, in order; None where it takes more than positions."""
        behind: set[ir.Node] = set()
        waiting = [angle]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if node is not None:
                if node not in behind:
                    behind.add(node)
                    waiting += [x for x in node.inputs if x is not None]
            elif not value.is_initializer() and value.name != names.POSITION_IDS:
                return None
        return [node for node in self._graph if node in behind]


def _session(graph: ir.Graph, nodes: list[ir.Node], angle: ir.Value) -> ort.InferenceSession:
    """A session from positions ``[1, T]`` to ``angle`` in fp32."""
    read = {id(x): x for node in nodes for x in node.inputs if x is not None and x.is_initializer()}
    tensors = []
    for value in read.values():
        assert value.const_value is not None
        tensor = ir.to_proto(value.const_value)
        tensor.name = str(value.name)
        tensors.append(tensor)
    cast = onnx.helper.make_node("Cast", [str(angle.name)], ["rows"], to=onnx.TensorProto.FLOAT)
    made = onnx.helper.make_graph(
        [*map(ir.to_proto, nodes), cast], "angles",
        [onnx.helper.make_tensor_value_info(names.POSITION_IDS, onnx.TensorProto.INT64, [1, None])],
        [onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in graph.opset_imports.items()]
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, positions: NDArray[np.int64]) -> Table:
    (rows,) = session.run(None, {names.POSITION_IDS: positions[None].astype(np.int64)})
    found: Table = rows
    return found
