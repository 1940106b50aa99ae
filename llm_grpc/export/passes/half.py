"""Operators that ONNX Runtime's CUDA provider has no kernel of for bf16, in fp32."""

from __future__ import annotations

import onnx_ir as ir

WITHOUT_BF16 = frozenset({
    "ArgMax", "ArgMin", "Ceil", "Celu", "Clip", "Cos", "CumSum", "Einsum", "Elu", "Equal", "Floor", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax",
    "NonZero", "OneHot", "PRelu", "Pad", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare", "Round",
    "Selu", "Sin", "Softplus", "Softsign", "ThresholdedRelu", "TopK",
})  # fmt: skip
"""Of ONNX's own domain, in the versions of opset 18: those that have none, or whose definition leaves it out,
and ReduceMean, which torch computes in fp32. All but Range, EyeLike and the random ones have fp16."""

WITHOUT_FP16 = frozenset({"Range"})


def cast_around(model: ir.Model) -> None:
    """Let those operators compute in fp32 between two casts."""
    for node in list(model.graph):
        for dtype, names in ((ir.DataType.BFLOAT16, WITHOUT_BF16), (ir.DataType.FLOAT16, WITHOUT_FP16)):
            if node.op_type in names and node.domain in {"", "ai.onnx"}:
                _cast(model.graph, node, dtype)


def _cast(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    for place, value in enumerate(node.inputs):
        if value is not None and value.dtype == dtype:
            before = _cast_to(value, ir.DataType.FLOAT)
            graph.insert_before(node, before)
            node.replace_input_with(place, before.outputs[0])
    for value in node.outputs:
        if value.dtype == dtype:
            value.dtype = ir.DataType.FLOAT
            after = _cast_to(value, dtype)
            ir.convenience.replace_all_uses_with(value, after.outputs[0])
            after.replace_input_with(0, value)
            graph.insert_after(node, after)


def _cast_to(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node
