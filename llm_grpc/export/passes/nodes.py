"""Changes of nodes that several passes make."""

from __future__ import annotations

import onnx_ir as ir


def replace_node(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    """Put ``new`` in the place of ``old``; the last one's output is what ``old`` gave."""
    out, last = old.outputs[0], new[-1].outputs[0]
    last.shape, last.type = out.shape, out.type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(out, last)
    graph.remove(old, safe=True)
