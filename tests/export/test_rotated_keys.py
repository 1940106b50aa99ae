"""A calibration over few positions bounds the keys of all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from llm_grpc.export.passes.rotated_keys import at_any_position

ABSMAX = np.array([[1, 2, 3, 40, 5, 6, 0, 0], [8, 7, 6, 5, 4, 3, 0, 0]], np.float32)


def key_of(op_type: str, is_packed: bool = True, moves: tuple[str, ...] = (), **attributes: int) -> ir.Value:
    """Keys ``[1, T, 2 * 6]`` that ``op_type`` gives, moved by other operators."""
    node = ir.node(op_type, [ir.Value(name="x")], attributes, domain="com.microsoft")
    shape = (1, "tokens", 12) if is_packed else (1, 2, "tokens", 6)
    node.outputs[0].shape = ir.Shape(shape)
    for move in moves:
        node = ir.node(move, [node.outputs[0]])
    return node.outputs[0]


def bounds(key: ir.Value) -> list[list[int]]:
    found: NDArray[np.float32] = at_any_position(ABSMAX, key)
    rows: list[list[int]] = found.astype(int).tolist()
    return rows


@pytest.mark.parametrize("is_packed", [True, False])
def test_halves_are_pairs(is_packed: bool) -> None:
    key = key_of("RotaryEmbedding", is_packed, ("Transpose", "Pad", "Reshape", "Split"), num_heads=2)
    assert bounds(key) == [[40, 5, 6, 40, 5, 6, 0, 0], [8, 7, 6, 8, 7, 6, 0, 0]]


def test_neighbours_are_pairs_and_the_rest_is_not_turned() -> None:
    key = key_of("RotaryEmbedding", num_heads=2, interleaved=1, rotary_embedding_dim=4)
    assert bounds(key) == [[2, 2, 40, 40, 5, 6, 0, 0], [8, 8, 6, 6, 4, 3, 0, 0]]


@pytest.mark.parametrize("op_type", ["MatMul", "SimplifiedLayerNormalization"])
def test_keys_that_are_not_turned_keep_their_bounds(op_type: str) -> None:
    assert bounds(key_of(op_type, moves=("Split",))) == ABSMAX.astype(int).tolist()


@pytest.mark.parametrize("op_type", ["Concat", "Add"])
def test_pairs_that_are_not_known_are_all(op_type: str) -> None:
    assert bounds(key_of(op_type)) == [[40] * 8, [8] * 8]


def test_a_bias_turns_nothing() -> None:
    bias = ir.Value(name="bias", const_value=ir.tensor(np.zeros(12, np.float32), name="bias"))
    graph = ir.Graph([], [], nodes=[], initializers=[bias])
    assert graph.initializers
    add = ir.node("Add", [ir.Value(name="x"), bias])
    assert bounds(add.outputs[0]) == ABSMAX.astype(int).tolist()
