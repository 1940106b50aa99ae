"""What the nodes of a graph need, and which of them any part of a cut graph can compute again."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from llm_grpc import graph_names as names

_OF_SIZES = frozenset({"Shape", "Size"})
"""What read how large a value is, and nothing of what is in it."""


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that ``node`` and the graphs in its attributes take from outside of it."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        graphs = {
            ir.AttributeType.GRAPH: lambda a: [a.as_graph()],
            ir.AttributeType.GRAPHS: lambda a: a.as_graphs(),
        }.get(attribute.type)
        for graph in graphs(attribute) if graphs else ():
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (x for x in inner.inputs if x is not None and x.graph is node.graph)


class Needs:
    """Of each node of ``graph``: whether it is ``free``, and the weights that it reads.

    Free is what constants and a step's inputs alone say, of the tokens' ids their number: positions, angles,
    sizes.
    What a free node reads counts with the nodes that use it.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._free: set[ir.Node] = set()
        self._weights: dict[ir.Node, frozenset[ir.Value]] = {}
        for node in graph:
            values = list(reads(node))
            if all(self._is_given(value, node) for value in values):
                self._free.add(node)
            found = {value for value in values if value.is_initializer()}
            for value in values:
                if (before := value.producer()) in self._free:
                    found |= self._weights[before]
            self._weights[node] = frozenset(found)

    def is_free(self, node: ir.Node) -> bool:
        """Whether any stage can compute it for itself."""
        return node in self._free

    def weights(self, node: ir.Node) -> frozenset[ir.Value]:
        """The initializers that must be where the node is."""
        return self._weights[node]

    def _is_given(self, value: ir.Value, node: ir.Node) -> bool:
        producer = value.producer()
        if producer is not None:
            return producer in self._free
        if value.is_initializer():
            return True
        name = str(value.name)
        return names.layer_of(name) is None and (name != names.INPUT_IDS or node.op_type in _OF_SIZES)
