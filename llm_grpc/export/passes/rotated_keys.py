"""How large keys can be at any position, from how large they were at the positions of a calibration.

A rotation turns each pair of a key's channels by an angle that grows with the position, some pairs so slowly
that a calibration sees a small part of a turn. What is in one channel of a pair comes to stand in the other.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_MOVES = frozenset({"Pad", "Reshape", "Slice", "Split", "Transpose"})
"""Operators that move a head's channels together, or put zeros behind them; a slice is of tokens."""
_PLAIN = frozenset({"MatMul", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Operators that are no rotation: behind them keys do not depend on the position."""
_HEADS_APART = 4
"""The rank of ``[1, heads, T, d]``; the other form is ``[1, T, heads * d]``."""


def at_any_position(absmax: NDArray[np.float32], key: ir.Value) -> NDArray[np.float32]:
    """The maxima ``absmax [kv_heads, d]`` of the keys ``key``, enlarged to those of any position.

    Channels of a pair get the larger maximum of the two, all channels of a head the largest one where the
    graph does not show the pairs, and keys that are not rotated keep theirs.
    """
    node = key.producer()
    while node is not None and node.op_type in _MOVES:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is not None and (node.op_type in _PLAIN or _adds_bias(node)):
        return absmax
    partner = None if node is None else _partners(node, absmax.shape[1])
    if partner is None:
        return np.broadcast_to(absmax.max(axis=1, keepdims=True), absmax.shape)
    return np.maximum(absmax, absmax[:, partner])


def _adds_bias(node: ir.Node) -> bool:
    return node.op_type == "Add" and any(
        value is not None and value.is_initializer() for value in node.inputs
    )


def _partners(node: ir.Node, head_dim: int) -> NDArray[np.int64] | None:
    """For each channel the one that it is paired with, itself where it stays; None for another operator."""
    width = _rotated_width(node)
    if width is None or width > head_dim:
        return None
    places = np.arange(head_dim)
    turned = places[:width]
    is_neighbours = node.attributes.get_int("interleaved", 0)
    places[:width] = turned ^ 1 if is_neighbours else np.roll(turned, width // 2)
    return places


def _rotated_width(node: ir.Node) -> int | None:
    if node.op_type != "RotaryEmbedding":
        return None
    shape, heads = node.outputs[0].shape, node.attributes.get_int("num_heads", 0)
    part = node.attributes.get_int("rotary_embedding_dim", 0)
    if part or shape is None or not heads:
        return part or None
    last = shape[-1]
    if not isinstance(last, int):
        return None
    return last if len(shape) == _HEADS_APART else last // heads
