"""Changes of nodes that several passes make."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import onnx_ir as ir

from llm_grpc import graph_names as names


def replace_node(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    """Put ``new`` in the place of ``old``; the last one's output is what ``old`` gave."""
    out, last = old.outputs[0], new[-1].outputs[0]
    last.shape, last.type = out.shape, out.type
    graph.insert_before(old, new)
    if out.is_graph_output():
        out.name, last.name = None, out.name
    ir.convenience.replace_all_uses_with(out, last, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def input_of(graph: ir.Graph, name: str) -> ir.Value:
    """The graph's input ``name``."""
    return next(value for value in graph.inputs if value.name == name)


def paged_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The attention of every layer, in order."""
    inputs = {value.name: value for value in graph.inputs}
    for layer in count():
        past = inputs.get(names.past_blocks(layer, "key"))
        if past is None:
            return
        yield next(iter(past.uses())).node


def attention_nodes(graph: ir.Graph) -> Iterator[tuple[int, str, ir.Node]]:
    """Layer, half and node of all attention, the halves of a layer one after the other."""
    inputs = {value.name: value for value in graph.inputs}
    for layer in count():
        for half in names.HALVES:
            past = inputs.get(names.past(layer, "key", half))
            if past is None:
                return
            yield layer, half, next(iter(past.uses())).node
