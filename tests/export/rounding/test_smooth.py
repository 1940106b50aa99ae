"""Factors save error where a feature is far larger than the others, and are none where none is."""

from __future__ import annotations

import numpy as np
import pytest

from llm_grpc.export.rounding import blocks, int8
from llm_grpc.export.rounding.error import blocks_error, int8_error, output_error
from llm_grpc.export.rounding.grid import Floats
from llm_grpc.export.rounding.smooth import smoothing


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_an_outlier_is_smoothed_away() -> None:
    rows, matrices = normal(200, 64), [normal(64, 32, seed=1), normal(64, 8, seed=2)]
    rows[:, 5] *= 100
    found = smoothing(rows, matrices)
    assert found.strength > 0
    assert found.error < 0.5 * found.plain_error
    assert found.factor.argmax() == 5
    for matrix in matrices:
        exact = (rows / found.factor) @ (matrix * found.factor[:, None])
        np.testing.assert_allclose(exact, rows @ matrix, atol=1e-2)


def test_what_is_exact_already_is_left_alone() -> None:
    # Signs alone are multiples of the scale, in rows and in columns: nothing is lost that factors could save.
    rows, matrix = np.sign(normal(50, 16)), np.sign(normal(16, 8, seed=1))
    found = smoothing(rows, [matrix])
    assert found.strength == 0
    assert (found.factor == 1).all()
    assert found.error == found.plain_error


def test_dead_features_have_finite_factors() -> None:
    rows, matrix = normal(50, 16), normal(16, 8, seed=1)
    rows[:, 3], matrix[4] = 0, 0
    rows[:, 5] *= 50
    found = smoothing(rows, [matrix])
    assert np.isfinite(found.factor).all()
    assert (found.factor > 0).all()


def test_errors_are_ordered_by_bits() -> None:
    rows, weights = normal(64, 256), normal(256, 32, seed=1)
    four, eight = (blocks.quantize(weights, layout) for layout in (blocks.INT4, blocks.INT8))
    errors = [blocks_error(rows, weights, eight), blocks_error(rows, weights, four)]
    assert 0 < errors[0] < 0.02 < errors[1] < 0.15
    assert 0 < int8_error(rows, weights) < 0.02
    assert int8_error(rows, weights) == int8_error(rows, weights, int8.quantize(weights))


def test_the_error_is_relative_to_the_output() -> None:
    rows, weights = normal(10, 20), normal(20, 30, seed=1)
    assert output_error(rows, weights, rows, weights * np.float32(1.25)) == pytest.approx(0.25, rel=1e-4)
    zeros = np.zeros_like(weights)
    assert output_error(rows, zeros, rows, zeros) == 0
