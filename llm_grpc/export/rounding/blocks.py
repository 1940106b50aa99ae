"""Weights in blocks of 4 or 8 bits along K, as the operator com.microsoft.MatMulNBits reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_grpc.export.rounding.gptq import Feedback, column_slices, rounded
from llm_grpc.export.rounding.grid import Floats, Grid, block_grid

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """`bits` (4 or 8) per weight, and a float32 scale for every `block` (16, 32, 64 .. ) rows of a column.

    With `has_zeros` a block also has a zero point of as many bits, else it is in the middle: 8 or 128.
    """

    bits: int
    block: int
    has_zeros: bool

    @property
    def mean_bits(self) -> float:
        """Per weight, with scales and zero points."""
        return self.bits + (32 + (self.bits if self.has_zeros else 0)) / self.block

    def num_blocks(self, rows: int) -> int:
        """Blocks of a column of so many rows; the last may be shorter, and is stored in full."""
        return -(-rows // self.block)


INT8 = Layout(bits=8, block=128, has_zeros=False)
BLOCK_SIZES = (32, 64, 128)
"""What a block of 4 bits may have; the fewer there are, the sooner a single row is multiplied."""


def int4(block: int = BLOCK_SIZES[0]) -> Layout:
    """4 bits and a zero point, ``block`` rows of a column to a scale."""
    return Layout(bits=4, block=block, has_zeros=True)


INT4 = int4()

LAYOUTS = {"blocks8": INT8} | {f"blocks4x{block}": int4(block) for block in BLOCK_SIZES}
"""By the name of the format."""


@dataclass(frozen=True)
class Blocks:
    """Inputs of a MatMulNBits node for a matrix [K, N], K being `rows`.

    `packed` is uint8 [N, blocks, block * bits / 8], the lower half of a byte first; `scales` float32
    [N, blocks]; `zero_points` uint8 [N, bytes of so many codes], none where the layout has none.
    """

    layout: Layout
    rows: int
    packed: Bytes
    scales: Floats
    zero_points: Bytes | None


def quantize(weights: Floats, layout: Layout, feedback: Feedback | None = None) -> Blocks:
    """Weights float32 [K, N] to blocks: to the nearest, or with feedback from calibration by GPTQ."""
    rows, columns = weights.shape
    count = layout.num_blocks(rows)
    packed = np.empty((columns, count, layout.block * layout.bits // 8), np.uint8)
    scales = np.empty((columns, count), np.float32)
    zeros = np.empty((columns, count), np.uint8)
    for part in column_slices(weights.shape):
        _quantize(weights[:, part], layout, feedback, (packed[part], scales[part], zeros[part]))
    return Blocks(layout, rows, packed, scales, _pack(zeros, layout.bits) if layout.has_zeros else None)


def _quantize(
    weights: Floats, layout: Layout, feedback: Feedback | None, out: tuple[Bytes, Floats, Bytes]
) -> None:
    packed, scales, zeros = out
    weights = np.ascontiguousarray(weights, np.float32)
    importance = feedback.importance if feedback else np.ones(len(weights), np.float32)

    def grid_of(block: Floats, start: int) -> Grid:
        return block_grid(block, layout.bits, layout.has_zeros, importance[start : start + len(block)])

    for index, (_, grid, codes) in enumerate(rounded(weights, layout.block, grid_of, feedback)):
        # What pads the last block stands for 0, though nothing is multiplied by it.
        whole = np.repeat(grid.zero[:, None], layout.block, 1).astype(np.uint8)
        whole[:, : len(codes)] = codes.T
        packed[:, index] = _pack(whole, layout.bits)
        scales[:, index], zeros[:, index] = grid.scale, grid.zero


def dequantize(matrix: Blocks) -> Floats:
    """The float32 weights [K, N] that the blocks stand for."""
    layout = matrix.layout
    codes = _unpack(matrix.packed, layout.bits).astype(np.float32)
    zeros = np.float32(2 ** (layout.bits - 1))
    if matrix.zero_points is not None:
        codes -= _unpack(matrix.zero_points, layout.bits)[:, : matrix.scales.shape[1], None]
    else:
        codes -= zeros
    codes *= matrix.scales[:, :, None]
    return codes.reshape(len(codes), -1)[:, : matrix.rows].T


def round_blocks(rows: Floats, block: int) -> Floats:
    """Activations [n, K] as accuracy level 4 rounds them: to int8, a scale for each block of a row."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(rows), -1, block)
    largest = np.abs(padded).max(2, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    found: Floats = (np.rint(padded / scale) * scale).reshape(len(rows), -1)[:, : rows.shape[1]]
    return found


def _pack(codes: Bytes, bits: int) -> Bytes:
    """Codes [..., C] to bytes, [..., half of C, rounded up] for 4 bits."""
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[-1] % 2)))
    packed: Bytes = even[..., ::2] | np.left_shift(even[..., 1::2], 4, dtype=np.uint8)
    return packed


def _unpack(packed: Bytes, bits: int) -> Bytes:
    """The codes of bytes [..., C]: [..., 2 C] for 4 bits."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
