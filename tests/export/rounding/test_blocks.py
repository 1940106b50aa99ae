"""Blocks are what MatMulNBits computes with, and hold each weight to half a step."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from llm_grpc.export.rounding import blocks, gptq
from llm_grpc.export.rounding.blocks import INT4, INT8, Blocks, Layout
from llm_grpc.export.rounding.grid import Floats

LAYOUTS = [INT4, INT8, Layout(4, 32, has_zeros=False), Layout(4, 128, has_zeros=True), Layout(8, 32, True)]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def matmul(rows: Floats, matrix: Blocks, accuracy: int) -> Floats:
    """What ONNX Runtime computes."""
    tensors = {"B": matrix.packed, "scales": matrix.scales}
    if matrix.zero_points is not None:
        tensors["zeros"] = matrix.zero_points
    node = helper.make_node(
        "MatMulNBits", ["A", *tensors], ["Y"], domain="com.microsoft", K=matrix.rows, N=len(matrix.packed),
        bits=matrix.layout.bits, block_size=matrix.layout.block, accuracy_level=accuracy,
    )  # fmt: skip
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "AY"]
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([node], "one", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Floats = session.run(None, {"A": rows})[0]
    return found


def relative(found: Floats, wanted: Floats) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(64, 16), (97, 33), (130, 5), (31, 1), (257, 7)], ids=str)
def test_the_node_computes_with_the_dequantised_weights(layout: Layout, shape: tuple[int, int]) -> None:
    matrix = blocks.quantize(normal(*shape), layout)
    rows = normal(9, shape[0], seed=1)
    wanted = rows @ blocks.dequantize(matrix)
    assert relative(matmul(rows, matrix, accuracy=0), wanted) < 1e-5


@pytest.mark.parametrize("layout", [INT4, INT8], ids=str)
def test_accuracy_level_4_rounds_activations_as_simulated(layout: Layout) -> None:
    rows, matrix = normal(16, 300, seed=1), blocks.quantize(normal(300, 40), layout)
    found, exact = matmul(rows, matrix, accuracy=4), rows @ blocks.dequantize(matrix)
    simulated = blocks.round_blocks(rows, layout.block) @ blocks.dequantize(matrix)
    assert relative(found, exact) < 0.02
    # Kernels round as simulated or not at all; either is within the error that is counted on.
    assert min(relative(found, simulated), relative(found, exact)) < 1e-3


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e4]))
def test_no_block_is_off_by_more_than_a_step(
    layout: Layout, rows: int, columns: int, seed: int, size: float
) -> None:
    weights = normal(rows, columns, seed=seed) * np.float32(size)
    error = blocks.dequantize(blocks.quantize(weights, layout)) - weights
    for start in range(0, rows, layout.block):
        block = weights[start : start + layout.block]
        low, high = np.minimum(block.min(0), 0), np.maximum(block.max(0), 0)
        spread = 2 * np.abs(block).max(0) if not layout.has_zeros else high - low
        step = spread / (2**layout.bits - 1)
        mean = np.sqrt(np.square(error[start : start + layout.block]).mean(0))
        # Up to a step and not half of one: a rounded zero point or the missing top level cuts an extreme off.
        assert (mean <= 1.01 * step + 1e-30).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_zeros_stay_zero(layout: Layout) -> None:
    weights = normal(70, 6)
    weights[:, 2] = 0
    weights[32:64] = 0
    found = blocks.dequantize(blocks.quantize(weights, layout))
    assert (found[:, 2] == 0).all()
    assert np.isfinite(found).all()
    assert (blocks.round_blocks(np.zeros((2, 5), np.float32), layout.block) == 0).all()


def test_a_zero_point_serves_weights_of_one_sign() -> None:
    weights = np.abs(normal(128, 8))
    without = Layout(4, 32, has_zeros=False)
    errors = [relative(blocks.dequantize(blocks.quantize(weights, k)), weights) for k in (INT4, without)]
    assert errors[0] < 0.7 * errors[1]


def test_mean_bits_count_scales_and_zeros() -> None:
    assert INT4.mean_bits == 4 + 32 / 32 + 4 / 32
    assert INT8.mean_bits == 8 + 32 / 128


@pytest.mark.parametrize("has_feedback", [False, True])
def test_slices_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch, has_feedback: bool) -> None:
    weights = normal(70, 13)
    feedback = gptq.feedback(normal(90, 70, seed=3)) if has_feedback else None
    whole = blocks.quantize(weights, INT4, feedback)
    monkeypatch.setattr(gptq, "SLICE_WEIGHTS", 4 * 70)
    sliced = blocks.quantize(weights, INT4, feedback)
    np.testing.assert_allclose(blocks.dequantize(sliced), blocks.dequantize(whole), atol=1e-5)
