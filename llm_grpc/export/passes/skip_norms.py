"""A sum and the norm of it as one node, which reads and writes the sum once."""

from __future__ import annotations

import onnx_ir as ir

from llm_grpc.export.passes.nodes import replace_node

_SUM_AT = 3
"""Place of the sum among the outputs of the node."""


def skip_norms(model: ir.Model) -> None:
    """Write ``SkipSimplifiedLayerNormalization`` for each root mean square norm of a sum of two like values.

    LayerNormalization is left to ONNX Runtime, which does that itself.
    """
    graph = model.graph
    for norm in [node for node in graph if node.op_type == "SimplifiedLayerNormalization"]:
        total = norm.inputs[0]
        add = None if total is None else total.producer()
        if total is None or add is None or add.op_type != "Add" or not _are_like(total, *add.inputs):
            continue
        epsilon = norm.attributes["epsilon"].as_float()
        fused = ir.node(
            "SkipSimplifiedLayerNormalization", [add.inputs[1], add.inputs[0], norm.inputs[1]],
            {"epsilon": epsilon}, domain="com.microsoft", num_outputs=_SUM_AT + 1,
        )  # fmt: skip
        for unused in fused.outputs[1:_SUM_AT]:
            unused.name = ""
        kept = fused.outputs[_SUM_AT]
        kept.shape, kept.type = total.shape, total.type
        replace_node(graph, norm, [fused])
        ir.convenience.replace_all_uses_with(total, kept)
        graph.remove(add, safe=True)
    graph.sort()


def _are_like(total: ir.Value, *terms: ir.Value | None) -> bool:
    return total.shape is not None and all(
        term is not None
        and term.shape == total.shape
        and term.dtype == total.dtype
        and not term.is_initializer()
        for term in terms
    )
