"""What this machine could do at best: measured memory bandwidth and int8 GEMM rate, and what they bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import harness
from benchmarks.peers.checkpoint import BODY_WEIGHTS, HEAD_DIM, HEAD_WEIGHTS, KV_HEADS, LAYERS
from benchmarks.peers.contestants import Format

GEMM_SHAPES = ((512, 896, 4864), (2048, 2048, 2048))
_BUFFER_BYTES = 1 << 30
"""Far beyond any cache."""

_CACHE_VALUES = 2 * LAYERS * KV_HEADS * HEAD_DIM
"""Keys and values of one token."""


@dataclass(frozen=True)
class Machine:
    """What was measured."""

    bandwidth: float
    """Bytes per second that all threads together read from memory."""
    gemm: dict[tuple[int, int, int], float]
    """Operations per second of int8 matrix products through ONNX Runtime, by shape."""

    @property
    def best_gemm(self) -> float:
        """The bound uses the best rate that was seen: nobody may be faster than a limit."""
        return max(self.gemm.values())


def measure(threads: int) -> Machine:
    """Measure; about ten seconds on an idle machine."""
    return Machine(read_bandwidth(threads), {shape: _gemm_rate(shape, threads) for shape in GEMM_SHAPES})


def read_bandwidth(threads: int, size: int = _BUFFER_BYTES, repeats: int = 8) -> float:
    """The best of two reductions over a buffer; numpy lets go of the interpreter's lock meanwhile."""
    parts = np.array_split(np.ones(size // 8, np.int64), 8 * threads)
    with ThreadPoolExecutor(threads) as pool:
        times = [_best_s(partial(_reduce, pool, by, parts), repeats) for by in (np.bitwise_or, np.add)]
    return size / min(times)


def _reduce(pool: ThreadPoolExecutor, by: np.ufunc, parts: Sequence[NDArray[np.int64]]) -> list[object]:
    return list(pool.map(by.reduce, parts))


def _gemm_rate(shape: tuple[int, int, int], threads: int) -> float:
    import onnxruntime as ort  # noqa: PLC0415 - the tests of this package need no runtime

    rows, depth, columns = shape
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(_gemm_graph(depth, columns), options, providers=["CPUExecutionProvider"])
    inputs = {"a": np.random.default_rng(0).integers(0, 255, (rows, depth), np.uint8)}
    return 2 * rows * depth * columns / _best_s(lambda: session.run(None, inputs), 20)


def _gemm_graph(depth: int, columns: int) -> bytes:
    """uint8 activations by constant int8 weights, as in a quantised model: the runtime packs them at load."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - of the export extra

    weights = np.random.default_rng(1).integers(-127, 127, (depth, columns), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [None, depth])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, columns])],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _best_s(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def limits(machine: Machine, form: Format, requests: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The most that the machine allows of each figure that has a limit.

    ``requests`` are the trace's: tokens in, tokens out.
    """
    prompt, tokens = harness.SINGLE_PROMPT, harness.SINGLE_TOKENS
    found = {
        "tokens_per_s": sum(out for _, out in requests) / _trace_s(machine, form, requests),
        "prefill_tokens_per_s": prompt / _prefill_s(machine, form, prompt),
        "decode_tokens_per_s": 1 / _step_s(machine, form, 1, prompt + tokens / 2),
    }
    context = harness.DECODE_CONTEXT + harness.DECODE_TOKENS / 2
    for running in harness.DECODE_RUNNING:
        found[f"tokens_per_s_{running}"] = running / _step_s(machine, form, running, context)
    return found


def _step_s(machine: Machine, form: Format, running: int, context: float) -> float:
    """A decode step reads all weights once and the cache of each request, and multiplies a row for each."""
    read = _weight_bytes(form) + running * context * _CACHE_VALUES * form.cache
    return max(read / machine.bandwidth, 2 * running * (BODY_WEIGHTS + HEAD_WEIGHTS) / machine.best_gemm)


def _prefill_s(machine: Machine, form: Format, prompt: int) -> float:
    """A prompt's rows go through the layers, its last one through the output projection."""
    operations = 2 * (prompt * BODY_WEIGHTS + HEAD_WEIGHTS)
    return max(_weight_bytes(form) / machine.bandwidth, operations / machine.best_gemm)


def _trace_s(machine: Machine, form: Format, requests: Sequence[tuple[int, int]]) -> float:
    """As if reading and multiplying overlapped perfectly and all places were always taken."""
    out = sum(tokens for _, tokens in requests)
    rows = sum(prompt for prompt, _ in requests) + out
    longest = max(tokens for _, tokens in requests)
    steps = max(out / harness.MAX_RUNNING, longest)
    cached = sum(tokens * (prompt + tokens / 2) for prompt, tokens in requests)
    read = steps * _weight_bytes(form) + cached * _CACHE_VALUES * form.cache
    operations = 2 * (rows * BODY_WEIGHTS + out * HEAD_WEIGHTS)
    return max(read / machine.bandwidth, operations / machine.best_gemm)


def _weight_bytes(form: Format) -> float:
    return BODY_WEIGHTS * form.body + HEAD_WEIGHTS * form.head
