"""Weights in int8 with a scale per output column, for activations in int8 with a scale per row.

Kernels of x86 without VNNI add pairs of uint8 and int8 products in 16 bits and may saturate. ONNX Runtime's
answer is `reduce_range`, weights of 7 bits (see its `quantize_static`), which is not used here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_grpc.export.rounding.gptq import Feedback, column_slices, rounded
from llm_grpc.export.rounding.grid import Floats, Grid, column_grid

MEAN_BITS = 8.0
"""Per weight; the scales of the columns are less than a hundredth of a bit."""

_STRIDE = 128
"""Rows between two matrix products that hand errors on."""


@dataclass(frozen=True)
class Int8:
    """`weight` is int8 [K, N] from -127 to 127, `scale` float32 [N]."""

    weight: NDArray[np.int8]
    scale: Floats


def quantize(weights: Floats, feedback: Feedback | None = None) -> Int8:
    """Weights float32 [K, N] to int8: to the nearest, or with feedback from calibration by GPTQ."""
    found = Int8(np.empty(weights.shape, np.int8), np.empty(weights.shape[1], np.float32))
    for columns in column_slices(weights.shape):
        part = np.ascontiguousarray(weights[:, columns], np.float32)
        grid = column_grid(part)
        found.scale[columns] = grid.scale
        _round(part, grid, feedback, found.weight[:, columns])
    return found


def _round(part: Floats, grid: Grid, feedback: Feedback | None, out: NDArray[np.int8]) -> None:
    for start, _, codes in rounded(part, _STRIDE, lambda *_: grid, feedback):
        out[start : start + len(codes)] = codes - grid.zero


def dequantize(matrix: Int8) -> Floats:
    """The float32 weights [K, N] that the int8 ones stand for."""
    return matrix.weight * matrix.scale


def round_rows(rows: Floats) -> Floats:
    """Activations [n, K] as a run rounds them: to int8 with a scale per row, the largest magnitude / 127."""
    largest = np.abs(rows).max(1, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    found: Floats = np.rint(rows / scale) * scale
    return found
