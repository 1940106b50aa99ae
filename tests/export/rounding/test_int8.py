"""int8 holds each weight to half a step, and a row of activations does not see the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.export.rounding import gptq, int8
from llm_grpc.export.rounding.grid import Floats


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e4]))
def test_every_weight_is_within_half_a_step(rows: int, columns: int, seed: int, size: float) -> None:
    weights = normal(rows, columns, seed=seed) * np.float32(size)
    found = int8.quantize(weights)
    assert found.weight.dtype == np.int8
    assert np.abs(found.weight.astype(int)).max(0).tolist() == [127] * columns
    assert (np.abs(int8.dequantize(found) - weights) <= 0.5001 * found.scale).all()


def test_a_column_of_zeros_stays_zero() -> None:
    weights = normal(9, 3)
    weights[:, 1] = 0
    found = int8.quantize(weights)
    assert (int8.dequantize(found)[:, 1] == 0).all()
    assert np.isfinite(found.scale).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.floats(1, 1e6))
def test_a_row_among_others_is_rounded_as_alone(count: int, seed: int, outlier: float) -> None:
    rows = normal(count, 40, seed=seed)
    rows[0] *= np.float32(outlier)
    rows[-1] = 0
    together = int8.round_rows(rows)
    for row, found in zip(rows, together, strict=True):
        np.testing.assert_array_equal(int8.round_rows(row[None])[0], found)
        assert np.abs(found - row).max() <= 0.5001 * np.abs(row).max() / 127


def test_slices_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = normal(70, 13)
    whole = int8.quantize(weights)
    monkeypatch.setattr(gptq, "SLICE_WEIGHTS", 4 * 70)
    sliced = int8.quantize(weights)
    np.testing.assert_array_equal(sliced.weight, whole.weight)
    np.testing.assert_array_equal(sliced.scale, whole.scale)
