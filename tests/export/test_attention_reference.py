"""PagedAttention in ordinary operators is what the node is defined to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.export.passes.attention_reference import with_reference_attention

Floats = NDArray[np.float32]
TOLERANCE = 1e-5
BLOCKS, BLOCK, POSITIONS = 12, 16, 64


@dataclass(frozen=True)
class Shape:
    """One node's attributes."""

    kv_heads: int = 2
    group: int = 2
    head_dim: int = 8
    window: int = -1
    softcap: float = 0.0
    sinks: bool = False
    packed: bool = False
    rotary: int = 0
    interleaved: bool = False

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of queries, keys and values."""
        kv = self.kv_heads * self.head_dim
        return kv * self.group, kv, kv


def value(name: str, dtype: ir.DataType, *sizes: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(sizes))


def constant(name: str, array: Floats) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape), const_value=tensor
    )


def angles(shape: Shape) -> tuple[Floats, Floats]:
    """Cosines and sines ``[positions, rotary / 2]``."""
    speeds = 0.7 ** np.arange(shape.rotary // 2)
    turns = np.arange(POSITIONS)[:, None] * speeds
    return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


def session(shape: Shape, sinks: Floats) -> ort.InferenceSession:
    """A graph of one node, rewritten."""
    int32, fp32 = ir.DataType.INT32, ir.DataType.FLOAT
    widths = (sum(shape.widths),) if shape.packed else shape.widths
    read = [value(name, fp32, "T", width) for name, width in zip("qkv", widths, strict=False)]
    caches = [
        value(names.past_blocks(0, kind), fp32, "N", "S", shape.kv_heads, shape.head_dim)
        for kind in names.KINDS
    ]
    ints = [
        value(names.SEQUENCE_ENDS, int32, "B1"),
        value(names.PAST_LENGTHS, int32, "B"),
        value(names.BLOCK_TABLE, int32, "B", "P"),
        value(names.SLOT_MAPPING, int32, "T"),
    ]
    tables = [constant(name, table) for name, table in zip(("cos", "sin"), angles(shape), strict=True)]
    sink = constant("sinks", sinks)
    inputs = [
        *read, *[None] * (3 - len(read)), *caches, *ints[:3], *(tables if shape.rotary else [None, None]),
        ints[3], sink if shape.sinks else None,
    ]  # fmt: skip
    attributes: dict[str, Any] = {
        "num_heads": shape.kv_heads * shape.group,
        "kv_num_heads": shape.kv_heads,
        "local_window_size": shape.window,
        "softcap": shape.softcap,
        "do_rotary": int(bool(shape.rotary)),
        "rotary_interleaved": int(shape.interleaved),
    }
    node = ir.node("PagedAttention", inputs, attributes, domain="com.microsoft", num_outputs=3)
    out, *present = node.outputs
    for found, like in zip(present, caches, strict=True):
        found.type, found.shape = like.type, like.shape
    out.name, present[0].name, present[1].name = "out", "present.0.key", "present.0.value"
    out.type, out.shape = ir.TensorType(fp32), ir.Shape(["T", shape.widths[0]])
    graph = ir.Graph(
        [*read, *caches, *ints], [out, *present], nodes=[node],
        initializers=[*(tables if shape.rotary else []), *([sink] if shape.sinks else [])],
        opset_imports={"": 18, "com.microsoft": 1}, name="node",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    with_reference_attention(model)
    assert "PagedAttention" not in {node.op_type for node in model.graph}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def turned(shape: Shape, x: Floats, positions: NDArray[np.int64]) -> Floats:
    """``x [T, heads, d]`` turned by its positions."""
    if not shape.rotary:
        return x
    half = shape.rotary // 2
    cos, sin = (table[positions][:, None] for table in angles(shape))
    first = slice(0, shape.rotary, 2) if shape.interleaved else slice(0, half)
    second = slice(1, shape.rotary, 2) if shape.interleaved else slice(half, shape.rotary)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def attended(shape: Shape, query: Floats, keys: Floats, values: Floats, at: int, sinks: Floats) -> Floats:
    """One token ``query [heads, d]`` at position ``at``, over ``keys`` and ``values [n, kv_heads, d]``."""
    out = np.empty_like(query)
    first = max(0, at + 1 - shape.window) if shape.window > 0 else 0
    for head in range(len(query)):
        own = head // shape.group
        scores = keys[first : at + 1, own] @ query[head] / np.sqrt(shape.head_dim)
        if shape.softcap:
            scores = np.tanh(scores / shape.softcap) * shape.softcap
        weights = np.exp(scores)
        total = weights.sum() + (np.exp(sinks[head]) if shape.sinks else 0)
        out[head] = weights @ values[first : at + 1, own] / total
    return out


SHAPES = st.builds(
    Shape,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([8, 24]),
    window=st.sampled_from([-1, 1, 5, 30]),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
    packed=st.booleans(),
    rotary=st.sampled_from([0, 8]),
    interleaved=st.booleans(),
)
SEQUENCES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=4)
"""Cached and new tokens of each."""


@settings(max_examples=60, deadline=None)
@given(SHAPES, SEQUENCES, st.integers(0, 2**31))
def test_it_is_attention(shape: Shape, sequences: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    sinks = random.normal(size=shape.kv_heads * shape.group).astype(np.float32)
    lengths = [past + new for past, new in sequences]
    places = -(-max(lengths) // BLOCK)
    order = random.permutation(len(sequences) * places).reshape(len(sequences), places).astype(np.int32)
    caches = [
        random.normal(size=(order.size + 1, BLOCK, shape.kv_heads, shape.head_dim)).astype(np.float32)
        for _ in names.KINDS
    ]
    tokens = sum(new for _, new in sequences)
    read = [random.normal(size=(tokens, width)).astype(np.float32) for width in shape.widths]
    positions = np.concatenate([np.arange(past, past + new) for past, new in sequences])
    owner = np.repeat(np.arange(len(sequences)), [new for _, new in sequences])
    mapping = order[owner, positions // BLOCK] * BLOCK + positions % BLOCK
    feeds = {
        **({"q": np.concatenate(read, 1)} if shape.packed else dict(zip("qkv", read, strict=True))),
        names.past_blocks(0, "key"): caches[0],
        names.past_blocks(0, "value"): caches[1],
        names.SEQUENCE_ENDS: np.cumsum([0, *(new for _, new in sequences)]).astype(np.int32),
        names.PAST_LENGTHS: np.array([past for past, _ in sequences], np.int32),
        names.BLOCK_TABLE: order,
        names.SLOT_MAPPING: mapping.astype(np.int32),
    }
    out, *present = session(shape, sinks).run(None, feeds)

    query, key, new_values = (x.reshape(tokens, -1, shape.head_dim) for x in read)
    query, key = turned(shape, query, positions), turned(shape, key, positions)
    for cache, new in zip(caches, (key, new_values), strict=True):
        cache.reshape(-1, shape.kv_heads, shape.head_dim)[mapping] = new
    for found, wanted in zip(present, caches, strict=True):
        assert np.abs(found - wanted).max() <= TOLERANCE
    for token in range(tokens):
        keys, values = (
            cache[order[owner[token]]].reshape(-1, shape.kv_heads, shape.head_dim) for cache in caches
        )
        wanted = attended(shape, query[token], keys, values, int(positions[token]), sinks)
        assert np.abs(out[token] - wanted.reshape(-1)).max() <= 1e-4, token


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_mapping_of_minus_one_writes_nothing(kept: int) -> None:
    """The tokens attend to what the cache has in their places."""
    shape, random = Shape(), np.random.default_rng(0)
    caches = [random.normal(size=(2, BLOCK, 2, 8)).astype(np.float32) for _ in names.KINDS]
    read = [random.normal(size=(3, width)).astype(np.float32) for width in shape.widths]
    mapping = np.array([BLOCK + 4, BLOCK + 5, BLOCK + 6], np.int32)
    mapping[kept:] = -1
    feeds = {
        **dict(zip("qkv", read, strict=True)),
        names.past_blocks(0, "key"): caches[0],
        names.past_blocks(0, "value"): caches[1],
        names.SEQUENCE_ENDS: np.array([0, 3], np.int32),
        names.PAST_LENGTHS: np.array([4], np.int32),
        names.BLOCK_TABLE: np.array([[1]], np.int32),
        names.SLOT_MAPPING: mapping,
    }
    out, *present = session(shape, np.zeros(4, np.float32)).run(None, feeds)
    for index, cache in enumerate(caches):
        cache[1, 4 : 4 + kept] = read[1 + index].reshape(3, 2, 8)[:kept]
        assert np.array_equal(present[index], cache)
    for token in range(3):
        query = read[0][token].reshape(4, 8)
        wanted = attended(shape, query, caches[0][1], caches[1][1], 4 + token, np.zeros(4, np.float32))
        assert np.abs(out[token] - wanted.reshape(-1)).max() <= TOLERANCE
