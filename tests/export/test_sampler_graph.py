"""The device's sampler draws the tokens that the host's does, and says where it cannot tell."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.devices import CPU
from llm_grpc.engine.step_plan import Sample
from llm_grpc.export.device_graphs import write_device_graphs
from llm_grpc.export.sampler_graph import CANDIDATES, sampler_graph
from llm_grpc.manifest import KvCache
from llm_grpc.runtime.device_memory import Traffic
from llm_grpc.runtime.device_sampler import DeviceSampler
from llm_grpc.runtime.logits_memory import LogitsMemory
from llm_grpc.runtime.paged_bindings import RowOutputs
from llm_grpc.runtime.sampler import sample_tokens, uniform
from llm_grpc.sampling_params import SamplingParams

LARGE = 5000
"""A vocabulary beyond the candidates, and no multiple of a block."""


@cache
def session(vocabulary: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(sampler_graph(vocabulary)).SerializeToString(), options)


def drawn(logits: NDArray[np.float32], samples: list[Sample]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens and which of them are undecided."""
    params = [sample.params for sample in samples]
    feeds = {
        names.LOGITS: logits,
        names.TEMPERATURE: np.array([p.temperature for p in params]),
        names.TOP_K: np.array([p.top_k for p in params], np.float64),
        names.TOP_P: np.array([p.top_p for p in params]),
        names.UNIFORM: np.array([uniform(sample) for sample in samples]),
    }
    tokens, undecided = session(logits.shape[1]).run([names.TOKENS, names.UNDECIDED], feeds)
    return tokens, undecided


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.floats(0.05, 3.0),
    top_k=st.sampled_from([0, 1, 2, 40, 256, 257, 900, 4999, 5000, 10**6]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    seed=st.integers(0, 2**64 - 1),
)
SAMPLES = st.lists(st.tuples(PARAMS, st.integers(0, 10_000)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(SAMPLES, st.sampled_from([7, 257, 512, 1024, 1025, LARGE]), st.integers(0, 2**31), st.booleans())
def test_a_decided_token_is_the_host_s(
    asked: list[tuple[SamplingParams, int]], vocabulary: int, seed: int, coarse: bool
) -> None:
    """Coarse logits have many equals."""
    samples = [Sample(row, row, index, params) for row, (params, index) in enumerate(asked)]
    logits = np.random.default_rng(seed).normal(0, 3, (len(samples), vocabulary)).astype(np.float32)
    logits = logits.round() if coarse else logits
    tokens, undecided = drawn(logits, samples)
    for row, wanted in enumerate(sample_tokens(logits, samples)):
        assert undecided[row] or tokens[row] == wanted, (row, samples[row])


def test_without_equals_what_fits_is_decided() -> None:
    """Of a vocabulary beyond the candidates and settings that people use."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 4, (400, LARGE)).astype(np.float32)
    kinds = [
        SamplingParams(1, temperature=1.0),
        SamplingParams(1, temperature=0.7, top_p=0.95),
        SamplingParams(1, temperature=1.0, top_k=50),
        SamplingParams(1, temperature=1.3, top_k=40, top_p=0.9),
    ]
    samples = [Sample(row, row, row, kinds[row % 4]) for row in range(400)]
    tokens, undecided = drawn(logits, samples)
    assert not undecided.any()
    assert tokens.tolist() == sample_tokens(logits, samples)


def test_what_is_left_to_the_host() -> None:
    flat, equal = np.zeros((1, LARGE), np.float32), np.zeros((1, 100), np.float32)
    descending = -np.arange(LARGE, dtype=np.float32)[None] * 1e-4
    for logits, params in (
        (descending, SamplingParams(1, temperature=1.0, top_p=0.9)),  # the nucleus is beyond the candidates
        (descending, SamplingParams(1, temperature=1.0, top_k=CANDIDATES + 1)),
        (flat, SamplingParams(1, temperature=1.0, top_p=0.001)),  # which of the equals is inside
        (equal, SamplingParams(1, temperature=1.0, top_p=0.5)),
    ):
        _, undecided = drawn(logits, [Sample(0, 0, 0, params)])
        assert undecided.all()


def test_rows_that_are_left_are_drawn_by_the_host(tmp_path: Path) -> None:
    """Of six rows one is greedy and not asked for, and two are flat: which of their equals is a nucleus? The
    logits of these two are fetched, and no others."""
    cache = KvCache(num_layers=1, num_heads=1, head_dim=8, dtype="float32")
    write_device_graphs(tmp_path, LARGE, cache, (1,))
    traffic = Traffic()
    sampler, memory = DeviceSampler(tmp_path, CPU, traffic), LogitsMemory(8, LARGE, CPU, traffic)
    outputs = RowOutputs(6, memory, CPU, traffic)
    logits = np.random.default_rng(0).normal(0, 3, (6, LARGE)).astype(np.float32)
    logits[[1, 4]] = 0
    memory.array.write(np.concatenate([logits, np.full((2, LARGE), np.nan, np.float32)]))
    params = SamplingParams(1, temperature=0.9, top_p=0.1, seed=5)
    rows = [4, 5, 1, 0, 2]
    for index in range(3):
        samples = [Sample(row, row, index, params) for row in rows]
        before = traffic.from_device
        assert sampler.draw(outputs, rows, samples) == sample_tokens(logits[rows], samples)
        assert sampler.num_undecided == 2 * (index + 1)
        assert traffic.from_device - before == 6 * (8 + 1) + 2 * LARGE * 4


def test_its_operators_have_kernels_on_gpus() -> None:
    """Those of ONNX Runtime's CUDA provider for the types that they are used with; none sums in order."""
    used = {node.op_type for node in sampler_graph(LARGE).graph}
    assert used <= {
        "Abs", "Add", "And", "Cast", "ConstantOfShape", "Div", "Equal", "Exp", "Expand", "GatherElements",
        "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Max", "Min", "Mul", "Not", "Or", "Pad",
        "ReduceSum", "Reshape", "Slice", "Squeeze", "Sub", "TopK", "Trilu", "Unsqueeze", "Where",
    }  # fmt: skip
