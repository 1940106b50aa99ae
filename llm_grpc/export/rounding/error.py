"""How far the output of a rounded matrix is from the exact one, on calibration rows."""

from __future__ import annotations

import numpy as np

from llm_grpc.export.rounding import blocks, int8
from llm_grpc.export.rounding.gptq import column_slices
from llm_grpc.export.rounding.grid import Floats


def output_error(rows: Floats, weights: Floats, rounded_rows: Floats, rounded_weights: Floats) -> float:
    """||X W - X' W'|| / ||X W||, Frobenius norms; 0 where X W is 0 and stays it. X [n, K], W [K, N]."""
    difference = norm = 0.0
    for columns in column_slices((max(weights.shape[0], len(rows)), weights.shape[1])):
        exact = rows @ weights[:, columns]
        norm += float(np.square(exact).sum(dtype=np.float64))
        exact -= rounded_rows @ rounded_weights[:, columns]
        difference += float(np.square(exact).sum(dtype=np.float64))
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))


def int8_error(rows: Floats, weights: Floats, matrix: int8.Int8 | None = None) -> float:
    """Of int8 with a scale per row; of weights rounded to the nearest unless their matrix is given."""
    found = int8.dequantize(matrix or int8.quantize(weights))
    return output_error(rows, weights, int8.round_rows(rows), found)


def blocks_error(rows: Floats, weights: Floats, matrix: blocks.Blocks) -> float:
    """Of MatMulNBits at accuracy level 4, which rounds activations to int8 in blocks too."""
    rounded_rows = blocks.round_blocks(rows, matrix.layout.block)
    return output_error(rows, weights, rounded_rows, blocks.dequantize(matrix))
