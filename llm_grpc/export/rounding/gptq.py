"""Rounding a matrix row by row, where a row makes up for the errors of those before it.

GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers") in the form of LDLQ (Chee et al. 2023, "QuIP: 2-Bit Quantization of Large Language Models With
Guarantees"): with X^T X = (U + I) D (U + I)^T and U strictly upper triangular, row k is rounded from
W_k + sum over j < k of U_jk (W_j - What_j). One Cholesky factorisation, and no inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from llm_grpc.export.rounding.grid import Floats, Grid

DAMPING = 0.03
"""Added to the diagonal of X^T X as a share of its mean. From 0.002 to 0.1 made no difference that shows."""

SLICE_WEIGHTS = 2**24
"""Weights of a slice of columns, the part worked on at a time: 64 MiB in float32, some four times."""


@dataclass(frozen=True)
class Feedback:
    """What calibration says about a matrix of K input features; shared by all matrices of the same input.

    `matrix` is float32 [K, K]: column k holds the shares of earlier rows' errors, above the diagonal.
    `importance` is float32 [K]: the mean square of each feature.
    """

    matrix: Floats
    importance: Floats


def feedback(rows: Floats, damping: float = DAMPING) -> Feedback:
    """From activations [n, K]. Needs about 32 K^2 bytes for a moment.

    Rows should be 2,048 or more: with fewer than K of them errors outside their span go unseen.

    Raises:
        ValueError: rows are not a matrix, are none, or are not finite.
    """
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError(f"calibration rows of shape {rows.shape}: finite numbers [n, K] are needed")
    gram = (rows.T @ rows).astype(np.float64)
    mean = gram.trace() / len(gram) or 1.0
    gram[np.diag_indices_from(gram)] += damping * mean
    # From the last row and column to the first, a lower factor becomes an upper one.
    upper = np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    matrix = (upper / upper.diagonal()).astype(np.float32)
    return Feedback(matrix, np.square(rows).mean(0))


def rounded(
    weights: Floats, block: int, grid_of: Callable[[Floats, int], Grid], feedback: Feedback | None
) -> Iterator[tuple[int, Grid, Floats]]:
    """Grid and codes [B, N] of every block of rows of weights [K, N], after the index of its first row.

    The grid of a block is chosen by `grid_of(block, first row)` when what earlier rows hand on is in it.
    """
    error = np.zeros_like(weights) if feedback else weights[:0]
    for start in range(0, len(weights), block):
        stop = min(start + block, len(weights))
        target = weights[start:stop]
        if feedback and start:
            target = target + feedback.matrix[:start, start:stop].T @ error[:start]
        grid = grid_of(target, start)
        if feedback is None:
            yield start, grid, grid.codes(target)
            continue
        within = feedback.matrix[start:stop, start:stop]
        yield start, grid, _round_block(target, weights[start:stop], error[start:stop], grid, within)


def _round_block(target: Floats, weights: Floats, error: Floats, grid: Grid, within: Floats) -> Floats:
    """Codes of a block's rows in turn; fills in their errors."""
    codes = np.empty_like(target)
    for k in range(len(target)):
        codes[k] = grid.codes(target[k] + within[:k, k] @ error[:k])
        error[k] = weights[k] - grid.values(codes[k])
    return codes


def column_slices(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of the columns of a matrix [K, N], small enough to make copies of."""
    width = max(1, SLICE_WEIGHTS // max(1, shape[0]))
    return (slice(start, min(start + width, shape[1])) for start in range(0, shape[1], width))
