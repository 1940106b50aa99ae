"""Linear layers in int8, each row of activations with a scale of its own.

A row is rounded by its own largest magnitude and nothing else, so that what a sequence gets does not depend
on the others of the step. ONNX Runtime's dynamic quantisation takes one scale for all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from llm_grpc.export.passes.linears import Group, Linear
from llm_grpc.export.passes.nodes import input_of, replace_node
from llm_grpc.export.passes.weights import SOURCES, Array, add_constant, add_weight, drop_unused
from llm_grpc.export.rounding import int8
from llm_grpc.export.rounding.gptq import Feedback
from llm_grpc.graph_names import INPUT_IDS

_MIDDLE = 128
"""The zero point of activations, which are uint8. Weights are int8 and have none: with one, the runtime's
fast kernels are not used."""

Hints = Callable[[], Feedback | None]
"""What calibration says of a matrix, asked for when it is rounded."""


def no_hints() -> None:
    """Without calibration."""
    return


class Int8:
    """Writes int8 layers into one graph."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._middles: dict[str, ir.Value] = {}
        self._scalings: set[ir.Node] = set()

    def write(self, group: Group, linears: tuple[Linear, ...], feedback: Hints = no_hints) -> None:
        """Replace ``linears``, all or some of ``group``."""
        codes, scale, nodes = self._rounded(group.x)
        first = linears[0].node
        self._graph.insert_before(first, nodes)
        for linear in linears:
            self._write(linear, codes, scale, feedback)
        drop_unused(self._graph, [linear.weight for linear in linears])

    def _rounded(self, x: ir.Value) -> tuple[ir.Value, ir.Value, list[ir.Node]]:
        """Codes of ``x [..., K]``, and the scale of each row, ``[..., 1]``.

        A row of zeros has the scale 0 and some codes or other, whose products are multiplied by that 0.
        """
        graph = self._graph
        late = self._put_off(x)
        nodes = [ir.node("Abs", [x])]

        def then(op_type: str, *more: ir.Value, **attributes: int) -> ir.Value:
            nodes.append(ir.node(op_type, [nodes[-1].outputs[0], *more], attributes))
            return nodes[-1].outputs[0]

        rank, is_guarded = len(_sizes(x)), not self._always_has_rows(x)
        if is_guarded:  # the runtime's maximum over no rows at all has a wrong shape: there is one row more
            zeros = np.zeros([1] * (rank - 1) + [int(str(_sizes(x)[-1]))], np.float32)
            then("Concat", add_constant(graph, f"no_row_{zeros.shape}", zeros), axis=rank - 2)
        then("ReduceMax", add_constant(graph, "last_axis", np.array([-1])), keepdims=1)
        scale = then("Mul", add_constant(graph, "one_127th", np.array(1 / 127, np.float32)))
        if is_guarded:
            ends = [add_constant(graph, f"row_{n}", np.array([n])) for n in (0, -1, rank - 2)]
            scale = then("Slice", *ends)
        scales = then("Reshape", add_constant(graph, "flat", np.array([-1])))
        middles = self._middles_for(x, scales, nodes)
        nodes.append(ir.node("QuantizeLinear", [x, scales, middles], {"axis": rank - 2}))
        codes = nodes[-1].outputs[0]
        if late is not None:
            nodes.append(ir.node("Mul", [scale, late]))
            scale = nodes[-1].outputs[0]
        return codes, scale, nodes

    def _put_off(self, x: ir.Value) -> ir.Value | None:
        """Let ``x``, a product with one of our layers, do without that layer's row scales; returns them.

        A row's codes are the same in any unit, so that the unit can wait until one number for each row is
        all that is to be multiplied.
        """
        product = x.producer()
        if product is None or product.op_type != "Mul" or len({user for user, _ in x.uses()}) != 1:
            return None
        for place, value in enumerate(product.inputs):
            scaling = None if value is None else value.producer()
            if scaling in self._scalings and scaling is not None and len(scaling.outputs[0].uses()) == 1:
                product.replace_input_with(place, scaling.inputs[0])
                scale = scaling.inputs[1]
                self._graph.remove(scaling, safe=True)
                return scale
        return None

    def _always_has_rows(self, x: ir.Value) -> bool:
        """Whether its rows are the packed tokens, or those that need logits; an expert may have none."""
        sizes = [str(size) for size in _sizes(x)[:-1]]
        return sizes[-1] in {"tokens", "rows"} and sizes[:-1] in ([], ["1"])

    def _middles_for(self, x: ir.Value, scales: ir.Value, nodes: list[ir.Node]) -> ir.Value:
        """The zero point for each row. All of the packed tokens share one vector of them, which takes the
        number of them from the token ids, so that every stage of a graph that is cut can make its own.
        """
        key = str(_sizes(x)[-2]) if self._always_has_rows(x) else ""
        if key in self._middles:
            return self._middles[key]
        middle = add_constant(self._graph, "middle", np.array([_MIDDLE], np.uint8))
        if key == "tokens":
            shape = ir.node("Shape", [input_of(self._graph, INPUT_IDS)], {"start": 1})
        else:
            shape = ir.node("Shape", [scales])
        expand = ir.node("Expand", [middle, shape.outputs[0]])
        nodes += [shape, expand]
        if key:
            self._middles[key] = expand.outputs[0]
        return expand.outputs[0]

    def _write(self, linear: Linear, codes: ir.Value, scale: ir.Value, feedback: Hints) -> None:
        graph, node = self._graph, linear.node
        weight, scales = _matrix(graph, linear, feedback)
        new = []
        if linear.is_transposed:
            new.append(ir.node("Transpose", [weight], {"perm": [1, 0]}))
            weight = new[0].outputs[0]
        one = add_constant(graph, "one", np.array(1, np.float32))
        middle = add_constant(graph, "row_middle", np.array(_MIDDLE, np.uint8))
        inputs = [codes, weight, one, scales, middle]
        new.append(ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft"))
        new.append(ir.node("Mul", [new[-1].outputs[0], scale]))
        self._scalings.add(new[-1])
        replace_node(graph, node, new)


def _sizes(x: ir.Value) -> list[int | ir.SymbolicDim]:
    assert x.shape is not None
    return list(x.shape)


def _matrix(graph: ir.Graph, linear: Linear, feedback: Hints) -> tuple[ir.Value, ir.Value]:
    """The codes in the weight's own order of axes, and the scales ``[N]``."""
    rows, columns = linear.shape
    name = str(linear.weight.name)
    if f"{name}.int8" in graph.initializers:
        return graph.initializers[f"{name}.int8"], graph.initializers[f"{name}.scale"]

    @lru_cache(maxsize=1)
    def quantized() -> int8.Int8:
        return int8.quantize(linear.read(), feedback())

    def codes() -> Array:
        found = quantized().weight
        quantized.cache_clear()
        return found.T if linear.is_transposed else found

    shape = (columns, rows) if linear.is_transposed else (rows, columns)
    scales = add_weight(graph, f"{name}.scale", (columns,), ir.DataType.FLOAT, lambda: quantized().scale)
    weight = add_weight(graph, f"{name}.int8", shape, ir.DataType.INT8, codes)
    weight.meta[SOURCES] = linear.sources
    return weight, scales


def write_embedding(model: ir.Model) -> None:
    """Store the table of token embeddings in int8, a scale for each token; a tied head reads the same."""
    graph = model.graph
    uses = input_of(graph, INPUT_IDS).uses()
    node = next((user for user, place in uses if (user.op_type, place) == ("Gather", 1)), None)
    table = node.inputs[0] if node else None
    if node is None or table is None or SOURCES not in table.meta or table.dtype != ir.DataType.FLOAT:
        return
    weight, scales = _matrix(graph, Linear(node, table, is_transposed=True), no_hints)
    ids = input_of(graph, INPUT_IDS)
    picked = ir.node("Gather", [weight, ids])
    cast = ir.node("Cast", [picked.outputs[0]], {"to": ir.DataType.FLOAT})
    scale = ir.node("Gather", [scales, ids])
    wide = ir.node("Unsqueeze", [scale.outputs[0], add_constant(graph, "last", np.array([-1]))])
    out = ir.node("Mul", [cast.outputs[0], wide.outputs[0]])
    replace_node(graph, node, [picked, cast, scale, wide, out])
    drop_unused(graph, [table])
