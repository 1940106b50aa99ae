"""Errors are made up for, and never at a loss on the rows of the calibration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.export.rounding import blocks, int8
from llm_grpc.export.rounding.blocks import INT4
from llm_grpc.export.rounding.gptq import Feedback, feedback
from llm_grpc.export.rounding.grid import Floats


def correlated(rows: int, features: int, seed: int) -> Floats:
    """Features that depend on each other, as a model's do; one is far larger, one is always 0."""
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((rows, features // 4 + 1), np.float32)
    mixed = hidden @ random.standard_normal((features // 4 + 1, features), np.float32)
    found: Floats = mixed + random.standard_normal((rows, features), np.float32)
    found[:, 0] *= 30
    found[:, -1] = 0
    return found


def output_error(rows: Floats, weights: Floats, found: Floats) -> float:
    return float(np.linalg.norm(rows @ (found - weights)) / np.linalg.norm(rows @ weights))


def both(rows: Floats, weights: Floats, fed: Feedback | None) -> list[float]:
    found = [
        blocks.dequantize(blocks.quantize(weights, INT4, fed)), int8.dequantize(int8.quantize(weights, fed))
    ]  # fmt: skip
    return [output_error(rows, weights, matrix) for matrix in found]


@settings(max_examples=20, deadline=None)
@given(st.integers(10, 150), st.integers(3, 150), st.integers(0, 2**32 - 1))
def test_feedback_is_no_worse_on_its_own_rows(features: int, count: int, seed: int) -> None:
    rows = correlated(count, features, seed)
    weights = np.random.default_rng(seed).standard_normal((features, 24), np.float32)
    for nearest, compensated in zip(
        both(rows, weights, None), both(rows, weights, feedback(rows)), strict=True
    ):
        assert compensated <= 1.1 * nearest


def test_feedback_saves_a_third_of_the_error_on_other_rows() -> None:
    rows = correlated(2000, 128, 0)
    weights = np.random.default_rng(1).standard_normal((128, 64), np.float32)
    plain, fed = both(rows[1000:], weights, None), both(rows[1000:], weights, feedback(rows[:1000]))
    assert fed[0] < 0.67 * plain[0]
    assert fed[1] < 0.67 * plain[1]


def test_independent_features_have_nothing_to_make_up_for() -> None:
    rows = np.eye(40, dtype=np.float32)
    weights = np.random.default_rng(0).standard_normal((40, 8), np.float32)
    assert both(rows, weights, feedback(rows)) == both(rows, weights, None)


def test_the_factors_are_those_of_the_gram_matrix() -> None:
    rows = correlated(50, 12, 0)
    unit = feedback(rows, damping=1.0).matrix.astype(np.float64)
    gram = (rows.T @ rows).astype(np.float64)
    gram += np.eye(12) * gram.trace() / 12
    assert (np.tril(unit, -1) == 0).all()
    inverse = np.linalg.inv(unit)
    diagonal = inverse @ gram @ inverse.T
    off = diagonal - np.diag(diagonal.diagonal())
    assert np.abs(off).max() < 1e-4 * np.abs(diagonal).max()


@pytest.mark.parametrize("rows", [np.zeros((0, 4)), np.zeros(4), np.full((2, 4), np.nan)])
def test_rows_that_say_nothing_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        feedback(rows.astype(np.float32))


def test_rows_of_zeros_change_nothing() -> None:
    weights = np.random.default_rng(0).standard_normal((40, 8), np.float32)
    found = int8.quantize(weights, feedback(np.zeros((5, 40), np.float32)))
    np.testing.assert_array_equal(found.weight, int8.quantize(weights).weight)
