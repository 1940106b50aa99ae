"""The graph that draws tokens on the device, by the rules of ``llm_grpc.runtime.sampler``."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from llm_grpc import graph_names as names

CANDIDATES = 1024
"""Largest logits that are sorted. A nucleus or a top_k beyond them is left to the host."""

BLOCK = 512
"""Weights that are summed before any is looked at: kernels of cumulative sums pass over all that is before a
place once for each place."""

TOLERANCE = 1e-9
"""Of the sum of all weights. Nearer to a border the order of additions may decide: the host does."""

_OPSET = 18
_FLOAT, _DOUBLE, _INT64, _BOOL = (
    ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.BOOL
)  # fmt: skip
_HUGE, _END = 1e300, 2**63 - 1


def sampler_graph(vocabulary: int) -> ir.Model:
    """From ``logits`` fp32 ``[R, vocabulary]`` and a value for each row to one token for each row.

    The values are fp64 ``[R]``: ``temperature``, above 0; ``top_k``, 0 for all; ``top_p``; ``uniform``, in
    ``[0, 1)``. Sums are fp64. Outputs are ``tokens`` int64 ``[R]`` and ``undecided`` bool ``[R]``, the rows
    whose token is not settled here.
    """
    rows = {name: _value(name, _DOUBLE, "rows") for name in names.SAMPLER_ROWS}
    logits = _value(names.LOGITS, _FLOAT, "rows", vocabulary)
    write = _Writer()
    columns = {name: write.op("Unsqueeze", row, write.ints(1)) for name, row in rows.items()}
    draw = _Draw(write, vocabulary, logits, columns)
    tokens, undecided = draw.outputs()
    tokens.name, undecided.name = names.TOKENS, names.UNDECIDED
    for value, dtype in ((tokens, _INT64), (undecided, _BOOL)):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(["rows"])
    graph = ir.Graph(
        [logits, *rows.values()], [tokens, undecided], nodes=write.nodes,
        initializers=list(write.constants.values()), opset_imports={"": _OPSET}, name="sampler",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def _value(name: str, dtype: ir.DataType, *sizes: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(sizes))


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self._triangles: dict[int, ir.Value] = {}

    def ops(self, kind: str, count: int, *inputs: ir.Value, **attributes: Any) -> tuple[ir.Value, ...]:
        self.nodes.append(ir.node(kind, inputs, attributes, num_outputs=count))
        return tuple(self.nodes[-1].outputs)

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        if name not in self.constants:
            tensor = ir.tensor(array, name=name)
            value = _value(name, tensor.dtype, *array.shape)
            value.const_value = tensor
            self.constants[name] = value
        return self.constants[name]

    def ints(self, *values: int) -> ir.Value:
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def real(self, value: float) -> ir.Value:
        return self.constant(f"real_{value}", np.array(value, np.float64))

    def is_true(self, condition: ir.Value) -> ir.Value:
        """1 and 0 in fp64."""
        return self.op("Cast", condition, to=_DOUBLE)

    def total(self, x: ir.Value) -> ir.Value:
        """The sum of the last axis, which stays."""
        return self.op("ReduceSum", x, self.ints(-1), keepdims=1)

    def running(self, x: ir.Value, size: int) -> ir.Value:
        """Cumulative sums ``[…, size]`` by one product."""
        if size not in self._triangles:
            one = ir.tensor(np.ones(1))
            ones = self.op("ConstantOfShape", self.ints(size, size), value=one)
            self._triangles[size] = self.op("Trilu", ones, upper=1)
        return self.op("MatMul", x, self._triangles[size])

    def any_of(self, condition: ir.Value) -> ir.Value:
        """Bool ``[R, 1]``, whether one of the last axis is true."""
        return self.op("Greater", self.total(self.is_true(condition)), self.real(0.0))


class _Draw:
    """The parts of the graph; every value has rows first, ``[R, …]``."""

    def __init__(self, write: _Writer, vocabulary: int, logits: ir.Value, rows: dict[str, ir.Value]) -> None:
        self._write, self._rows = write, rows
        self._count = min(CANDIDATES, vocabulary)
        self._has_all = self._count == vocabulary
        self._vocabulary = vocabulary
        wide = write.op("Cast", logits, to=_DOUBLE)
        best, _ = write.ops("TopK", 2, logits, write.ints(self._count), axis=-1, largest=1, sorted=1)
        self._best = write.op("Cast", best, to=_DOUBLE)
        self._largest = write.op("Slice", self._best, write.ints(0), write.ints(1), write.ints(1))
        self._logits, self._weights = wide, self._exponentials(wide)
        self._doubts: list[ir.Value] = []

    def outputs(self) -> tuple[ir.Value, ir.Value]:
        write = self._write
        self._least = self._top_k()
        weights = self._kept(self._weights, self._logits, self._least)
        weights = self._kept(weights, self._logits, self._top_p(write.total(weights)))
        token = self._drawn(weights)
        doubt = self._doubts[0]
        for other in self._doubts[1:]:
            doubt = write.op("Or", doubt, other)
        return tuple(write.op("Squeeze", x, write.ints(1)) for x in (token, doubt))

    def _exponentials(self, logits: ir.Value) -> ir.Value:
        write = self._write
        below = write.op("Sub", logits, self._largest)
        return write.op("Exp", write.op("Div", below, self._rows[names.TEMPERATURE]))

    def _kept(self, weights: ir.Value, logits: ir.Value, least: ir.Value) -> ir.Value:
        """``weights`` with 0 where the logit is below ``least [R, 1]``."""
        write = self._write
        return write.op("Mul", weights, write.is_true(write.op("GreaterOrEqual", logits, least)))

    def _top_k(self) -> ir.Value:
        """The least logit that top_k leaves; lower than any where it leaves all."""
        write, top_k = self._write, self._rows[names.TOP_K]
        beyond = write.op("Greater", top_k, write.real(float(self._count)))
        if not self._has_all:
            is_cut = write.op("Less", top_k, write.real(float(self._vocabulary)))
            self._doubts.append(write.op("And", beyond, is_cut))
        place = write.op("Sub", top_k, write.real(1.0))
        place = write.op("Max", write.op("Min", place, write.real(self._count - 1.0)), write.real(0.0))
        least = write.op("GatherElements", self._best, write.op("Cast", place, to=_INT64), axis=1)
        cuts = write.op("And", write.op("Greater", top_k, write.real(0.0)), write.op("Not", beyond))
        return write.op("Where", cuts, least, write.real(-_HUGE))

    def _top_p(self, total: ir.Value) -> ir.Value:
        """The least logit of the nucleus; lower than any where top_p leaves all."""
        write, top_p = self._write, self._rows[names.TOP_P]
        ranked = self._kept(self._exponentials(self._best), self._best, self._least)
        mass = write.running(ranked, self._count)
        wanted = write.op("Mul", top_p, total)
        inside = write.op("Less", write.op("Sub", mass, ranked), wanted)
        number = write.total(write.is_true(inside))
        last = write.op("Cast", write.op("Sub", number, write.real(1.0)), to=_INT64)
        last = write.op("Max", last, write.ints(0))
        least = write.op("GatherElements", self._best, last, axis=1)
        cuts = write.op("Less", top_p, write.real(1.0))
        self._doubts.append(write.op("And", cuts, self._nucleus_doubt(mass, ranked, wanted, least, total)))
        return write.op("Where", cuts, least, write.real(-_HUGE))

    def _nucleus_doubt(
        self, mass: ir.Value, ranked: ir.Value, wanted: ir.Value, least: ir.Value, total: ir.Value
    ) -> ir.Value:
        """Whether the nucleus goes beyond the candidates, ends at a border, or ends among equals."""
        write = self._write
        is_real = write.op("Greater", ranked, write.real(0.0))
        before = write.op("Sub", mass, ranked)
        near = write.op("And", self._is_near(before, wanted, total), is_real)
        outside = write.op("And", write.op("GreaterOrEqual", before, wanted), is_real)
        equal = write.op("And", outside, write.op("Equal", self._best, least))
        doubt = write.op("Or", write.any_of(near), write.any_of(equal))
        if self._has_all:
            return doubt
        last = write.op("Slice", before, write.ints(-1), write.ints(_END), write.ints(1))
        return write.op("Or", doubt, write.op("Less", last, wanted))

    def _is_near(self, border: ir.Value, wanted: ir.Value, total: ir.Value) -> ir.Value:
        write = self._write
        distance = write.op("Abs", write.op("Sub", border, wanted))
        return write.op("Less", distance, write.op("Mul", total, write.real(TOLERANCE)))

    def _drawn(self, weights: ir.Value) -> ir.Value:
        """int64 ``[R, 1]``, where the cumulative weight first exceeds ``uniform`` of all."""
        write = self._write
        blocks = -(-self._vocabulary // BLOCK)
        missing = blocks * BLOCK - self._vocabulary
        if missing:
            weights = write.op("Pad", weights, write.ints(0, 0, 0, missing))
        parts = write.op("Reshape", weights, write.ints(-1, blocks, BLOCK))
        sums = write.op("ReduceSum", parts, write.ints(-1), keepdims=0)
        before = write.running(sums, blocks)
        total = write.op("Slice", before, write.ints(-1), write.ints(_END), write.ints(1))
        wanted = write.op("Mul", self._rows[names.UNIFORM], total)
        passed = write.is_true(write.op("LessOrEqual", before, wanted))
        block = self._place(passed, blocks)
        rest = write.op("Sub", wanted, write.total(write.op("Mul", sums, passed)))
        index = write.op("Expand", write.op("Unsqueeze", block, write.ints(2)), write.ints(1, 1, BLOCK))
        own = write.op("Squeeze", write.op("GatherElements", parts, index, axis=1), write.ints(1))
        within = write.running(own, BLOCK)
        place = self._place(write.is_true(write.op("LessOrEqual", within, rest)), BLOCK)
        chosen = write.op("GatherElements", own, place, axis=1)
        self._doubts.append(write.op("Not", write.op("Greater", chosen, write.real(0.0))))
        for border, aim in ((before, wanted), (within, rest)):
            self._doubts.append(write.any_of(self._is_near(border, aim, total)))
        return write.op("Add", write.op("Mul", block, write.ints(BLOCK)), place)

    def _place(self, passed: ir.Value, size: int) -> ir.Value:
        """int64 ``[R, 1]``, how many of ``size`` are passed, at most the last."""
        write = self._write
        count = write.op("Min", write.total(passed), write.real(size - 1.0))
        return write.op("Cast", count, to=_INT64)
