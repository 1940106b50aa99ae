"""The graph that copies a block of the cache to another one, in every layer."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from llm_grpc import graph_names as names
from llm_grpc.manifest import KvCache

_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
_OPSET = 18


def block_copies(kv_cache: KvCache, layers: Iterable[int]) -> ir.Model:
    """Block ``source [1]`` of the caches of ``layers`` goes to block ``target [1, 1]``.

    Outputs are where caches are.
    """
    source, target = _value(names.SOURCE, ir.DataType.INT64, 1), _value(names.TARGET, ir.DataType.INT64, 1, 1)
    inputs, outputs, nodes = [source, target], [], []
    for layer in layers:
        for kind in names.KINDS:
            past = _cache(names.past_blocks(layer, kind), kv_cache)
            block = ir.node("Gather", [past, source], {"axis": 0})
            present = _cache(names.present_blocks(layer, kind), kv_cache)
            nodes += [block, ir.node("ScatterND", [past, target, block.outputs[0]], outputs=[present])]
            inputs.append(past)
            outputs.append(present)
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": _OPSET}, name="blocks")
    return ir.Model(graph, ir_version=10)


def _cache(name: str, kv_cache: KvCache) -> ir.Value:
    sizes = ("blocks", "block_size", kv_cache.num_heads, kv_cache.head_dim)
    return _value(name, _TYPES[kv_cache.dtype], *sizes)


def _value(name: str, dtype: ir.DataType, *sizes: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(sizes))
