"""Factors that move the range of activations into weights (Xiao et al. 2022, "SmoothQuant").

x W = (x / s) (s W): features of x that are far larger than the others take the levels of int8 from them all.
Whoever produces x has to divide by s: a norm's weight where nothing else reads the norm, the columns of the
matrix before where nothing but a product by row lies between (V before the output projection, up before
down), or else one Mul in front of the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_grpc.export.rounding.error import int8_error
from llm_grpc.export.rounding.grid import Floats

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Smoothing:
    """`factor` is float32 [K], ones at a `strength` of 0.

    `error` is the root mean square over matrices of the relative output error in int8, `plain_error` the one
    without factors.
    """

    factor: Floats
    strength: float
    error: float
    plain_error: float


def smoothing(rows: Floats, matrices: Sequence[Floats]) -> Smoothing:
    """The factors of least simulated error for matrices [K, N] that share an input of rows [n, K].

    A matrix may be a part of its columns: a few thousand of them are enough to tell.
    """
    plain = np.ones(rows.shape[1], np.float32)
    before = error = _error(rows, matrices, plain)
    best, strength = plain, 0.0
    largest = np.max([np.abs(matrix).max(1) for matrix in matrices], 0)
    for tried in STRENGTHS:
        factor = _factor(np.abs(rows).max(0), largest, tried)
        found = _error(rows, matrices, factor)
        if found < error:
            best, strength, error = factor, tried, found
    return Smoothing(best, strength, error, before)


def _factor(activations: Floats, weights: Floats, strength: float) -> Floats:
    """SmoothQuant's formula, on the largest magnitudes of each feature, around 1.

    A feature that is always 0, in the activations or in the weights, counts as a small one.
    """
    x, w = (np.maximum(values, max(1e-5 * values.max(), 1e-30)) for values in (activations, weights))
    factor = x**strength / w ** (1 - strength)
    centred: Floats = (factor / np.sqrt(factor.max() * factor.min())).astype(np.float32)
    return centred


def _error(rows: Floats, matrices: Sequence[Floats], factor: Floats) -> float:
    scaled = rows / factor
    errors = [int8_error(scaled, matrix * factor[:, None]) for matrix in matrices]
    return float(np.sqrt(np.mean(np.square(errors))))
