"""The key-value cache in int8, each channel of each head with a scale that calibration found.

The scales are taken out of the attention nodes: keys and values are divided by them on the way in, queries
and results multiplied. The node's own scale is then 1 for all channels: with one scale for each its kernel
takes 10 to 40 % longer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.errors import ExportError
from llm_grpc.export.calibrate import Calibration
from llm_grpc.export.passes.int8_chunk import PAST_AT, PRESENT_AT, ChunkCache
from llm_grpc.export.passes.nodes import attention_nodes
from llm_grpc.export.passes.rotated_keys import at_any_position
from llm_grpc.export.passes.weights import add_constant
from llm_grpc.manifest import KvCache

HEAD_ROOM = 1.1
"""The largest value that a code stands for, over the largest that was seen. Values beyond it saturate.

A tenth was best or nearly so on texts other than the calibration's; half as much again costs what it adds."""

_LEAST = 1e-3
"""The least scale of a channel, over the largest of its head: padding and dead channels have no maximum."""
_LARGEST_CODE = 127
_SCALES_AT = (12, 13)
"""Places of ``k_scale`` and ``v_scale`` among the inputs of the node."""

_Scales = NDArray[np.float32]


def int8_cache(model: ir.Model, calibration: Calibration) -> None:
    """Keep the keys and values of every attention node of ``model`` in int8.

    A value is rounded to the nearest multiple of its channel's scale; queries, scores and sums stay in fp32.
    The code of a value does not depend on the rest of the step, nor on the half that it is computed in.

    Raises:
        ExportError: the calibration is not this graph's, or saw numbers that are not finite.
    """
    graph = model.graph
    chunk_cache = ChunkCache(graph)
    for layer, half, node in list(attention_nodes(graph)):
        key = node.inputs[1]
        assert key is not None
        keys = at_any_position(_largest(calibration.key_absmax, layer, "key", node), key)
        values = _largest(calibration.value_absmax, layer, "value", node)
        _rescale(graph, node, layer, _scales(keys), _scales(values))
        for past, present in zip(PAST_AT, PRESENT_AT, strict=True):
            for value in (node.inputs[past], node.outputs[present]):
                assert value is not None
                value.type = ir.TensorType(ir.DataType.INT8)
        if half == "decode":
            _quantise(graph, node)
        else:
            chunk_cache.rewrite(node)


def stated_cache(model: ir.Model, kv_cache: KvCache) -> KvCache:
    """``kv_cache`` with the type that the caches of ``model`` have."""
    first = names.past(0, "key", "decode")
    past = next(value for value in model.graph.inputs if value.name == first)
    return kv_cache.model_copy(update={"dtype": "int8"} if past.dtype == ir.DataType.INT8 else {})


def _largest(absmax: NDArray[np.float32], layer: int, kind: str, node: ir.Node) -> NDArray[np.float32]:
    """What the calibration found for ``node``, ``[kv_heads, head_dim]``."""
    if layer >= len(absmax) or not np.isfinite(absmax[layer]).all():
        raise ExportError(f"the calibration has no finite largest {kind} of layer {layer}")
    past = node.inputs[PAST_AT[0]]
    largest: NDArray[np.float32] = absmax[layer]
    assert past is not None
    assert past.shape is not None
    wanted = (past.shape[1], past.shape[3])
    if largest.shape != wanted:
        raise ExportError(f"the calibration's largest {kind}s are {largest.shape}, and the cache's {wanted}")
    return largest


def _scales(largest: NDArray[np.float32]) -> _Scales:
    """Of maxima ``[kv_heads, head_dim]``, in the same shape."""
    of_head = largest.max(axis=1, keepdims=True)
    # A head that was never anything but 0 may have any scale.
    least = np.where(of_head > 0, of_head * _LEAST, 1)
    found: _Scales = (np.maximum(largest, least) * (HEAD_ROOM / _LARGEST_CODE)).astype(np.float32)
    return found


def _rescale(graph: ir.Graph, node: ir.Node, layer: int, keys: _Scales, values: _Scales) -> None:
    """Let ``node`` compute with keys over ``keys`` and values over ``values``, and give what it gave."""
    group = node.attributes["num_heads"].as_int() // len(keys)
    factors: dict[str, _Scales] = {
        "query": np.repeat(keys, group, axis=0), "key": np.float32(1) / keys, "value": np.float32(1) / values,
        "result": np.repeat(values, group, axis=0),
    }  # fmt: skip
    constants = [
        add_constant(graph, f"cache_scale.{layer}.{name}", factor.ravel()) for name, factor in factors.items()
    ]
    for place, constant in enumerate(constants[:3]):
        mul = ir.node("Mul", [node.inputs[place], constant])
        graph.insert_before(node, mul)
        node.replace_input_with(place, mul.outputs[0])
    out = node.outputs[0]
    mul = ir.node("Mul", [out, constants[3]])
    mul.outputs[0].shape, mul.outputs[0].type = out.shape, out.type
    ir.convenience.replace_all_uses_with(out, mul.outputs[0])
    mul.replace_input_with(0, out)
    graph.insert_after(node, mul)


def _quantise(graph: ir.Graph, node: ir.Node) -> None:
    """Let ``node`` round what it caches to whole numbers."""
    one = add_constant(graph, "cache_scale", np.ones(1, np.float32))
    node.resize_inputs(_SCALES_AT[-1] + 1)
    for place in _SCALES_AT:
        node.replace_input_with(place, one)
    for name in ("k_quant_type", "v_quant_type"):
        node.attributes[name] = ir.AttrString(name, "PER_TENSOR")
    node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
