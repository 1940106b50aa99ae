"""The linear layers of a graph, in groups that multiply the same values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from llm_grpc.export.passes.weights import SOURCES, array_of, shape_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """``node`` multiplies by ``weight [K, N]``, or by ``[N, K]`` through a Transpose if ``is_transposed``."""

    node: ir.Node
    weight: ir.Value
    is_transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        rows, columns = shape_of(self.weight)
        return (columns, rows) if self.is_transposed else (rows, columns)

    @property
    def sources(self) -> tuple[str, ...]:
        """The parameters that it is made of."""
        found: tuple[str, ...] = self.weight.meta[SOURCES]
        return found

    @property
    def name(self) -> str:
        """The first of them."""
        return self.sources[0]

    def read(self) -> Floats:
        """The weights, float32 ``[K, N]``."""
        array = array_of(self.weight).astype(np.float32, copy=False)
        return array.T if self.is_transposed else array


@dataclass(frozen=True)
class Group:
    """Linear layers of one module that read ``x [..., K]``."""

    x: ir.Value
    linears: tuple[Linear, ...]


def groups_of(model: ir.Model) -> list[Group]:
    """The groups in the order of the graph, without what ranks experts: it decides and does not add."""
    found: dict[tuple[int, str], tuple[ir.Value, list[Linear]]] = {}
    for linear in _linears(model.graph):
        x = linear.node.inputs[0]
        assert x is not None
        if not _ranks(linear.node):
            parent = linear.name.rsplit(".", 2)[0]
            found.setdefault((id(x), parent), (x, []))[1].append(linear)
    return [Group(x, tuple(linears)) for x, linears in found.values()]


def _linears(graph: ir.Graph) -> Iterator[Linear]:
    for node in graph:
        if node.op_type != "MatMul":
            continue
        weight = node.inputs[1]
        assert weight is not None
        producer, is_transposed = weight.producer(), False
        if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
            weight, is_transposed = producer.inputs[0], True
        if SOURCES in weight.meta and len(shape_of(weight)) == 2:
            yield Linear(node, weight, is_transposed)


_BY_ELEMENT = frozenset(
    {"Add", "Cast", "Div", "Mul", "Reshape", "Sigmoid", "Slice", "Softmax", "Sub", "Tanh", "Where"}
)


def _ranks(node: ir.Node) -> bool:
    """Whether what comes out of ``node`` is ranked before another matrix sees it."""
    return reaches(node, "TopK", _BY_ELEMENT)


def reaches(node: ir.Node, op_type: str, through: Collection[str]) -> bool:
    """Whether what comes out of ``node`` gets to a node of ``op_type`` by none but those of ``through``."""
    waiting, seen = list(node.outputs), set()
    while waiting:
        for user, _ in waiting.pop().uses():
            if user.op_type == op_type:
                return True
            if user.op_type in through and user not in seen:
                seen.add(user)
                waiting.extend(user.outputs)
    return False


def bias_of(node: ir.Node) -> ir.Node | None:
    """The Add of a one-dimensional weight that alone reads ``node``, if there is one."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add":
        return None
    other = uses[0][0].inputs[1 - uses[0][1]]
    is_bias = other is not None and SOURCES in other.meta and len(shape_of(other)) == 1
    return uses[0][0] if is_bias else None
