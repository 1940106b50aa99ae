"""Linear layers in blocks of 4 or 8 bits, which ONNX Runtime widens while it multiplies."""

from __future__ import annotations

from functools import lru_cache

import onnx_ir as ir

from llm_grpc.export.passes.int8 import Hints
from llm_grpc.export.passes.linears import Linear
from llm_grpc.export.passes.nodes import replace_node
from llm_grpc.export.passes.weights import Array, add_weight, drop_unused
from llm_grpc.export.rounding import blocks

_ACCURACY = 4
"""Activations are rounded to int8, a scale for each block of a row: the level of the fast kernels."""


def write_blocks(graph: ir.Graph, linear: Linear, layout: blocks.Layout, feedback: Hints) -> None:
    """Replace ``linear`` by a MatMulNBits node."""
    rows, columns = linear.shape
    node, name = linear.node, f"{linear.weight.name}.blocks{layout.bits}"

    @lru_cache(maxsize=1)
    def quantized() -> blocks.Blocks:
        return blocks.quantize(linear.read(), layout, feedback())

    def packed() -> Array:
        found = quantized().packed
        quantized.cache_clear()
        return found

    def zero_points() -> Array:
        found = quantized().zero_points
        assert found is not None
        return found

    count = layout.num_blocks(rows)
    kind = ir.DataType.UINT8
    # The scales are written first and the codes last: the matrix is quantised once, and then forgotten.
    computed = node.outputs[0].dtype or ir.DataType.FLOAT

    def rounded_scales() -> Array:
        return quantized().scales.astype(computed.numpy(), copy=False)

    scales = add_weight(graph, f"{name}.scale", (columns, count), computed, rounded_scales)
    inputs = [scales]
    if layout.has_zeros:
        width = -(-count * layout.bits // 8)
        inputs.append(add_weight(graph, f"{name}.zero", (columns, width), kind, zero_points))
    codes = add_weight(graph, name, (columns, count, layout.block * layout.bits // 8), kind, packed)
    attributes = {
        "K": rows, "N": columns, "bits": layout.bits, "block_size": layout.block, "accuracy_level": _ACCURACY,
    }  # fmt: skip
    new = ir.node("MatMulNBits", [node.inputs[0], codes, *inputs], attributes, domain="com.microsoft")
    replace_node(graph, node, [new])
    drop_unused(graph, [linear.weight])
