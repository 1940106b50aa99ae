"""A graph cut between layers into graphs that run one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import onnx_ir as ir

from llm_grpc import graph_names as names
from llm_grpc.errors import ExportError
from llm_grpc.export.passes.borders import Border, borders
from llm_grpc.export.passes.nodes import input_of
from llm_grpc.export.passes.reads import Needs

_Weights = frozenset[ir.Value]


def cut(model: ir.Model, count: int) -> list[ir.Model]:
    """``count`` models that compute together what ``model`` does, about equal in bytes of weights.

    They share its tensors; what two of them read is in both. The values that cross get their names here.

    Raises:
        ExportError: there are fewer layers, or no place to cut between two of them.
    """
    if count == 1:
        return [model]
    needs = Needs(model.graph)
    nodes = [node for node in model.graph if not needs.is_free(node)]
    places = borders(nodes)
    if count > len(places) + 1:
        raise ExportError(f"--stages is {count}, and the graph has {len(places) + 1} layers")
    chosen = [places[index] for index in _balanced(_weights_between(nodes, needs, places), count)]
    crossing = _named(model.graph, chosen)
    stage_of = _stages(nodes, chosen)
    parts, given = [], list[ir.Value]()
    for stage, values in enumerate(crossing):
        ends = [value for value in model.graph.outputs if stage_of[value.producer()] == stage]
        parts.append(_part(model, given, [*ends, *values]))
        given += values
    return parts


def _weights_between(nodes: Sequence[ir.Node], needs: Needs, places: Sequence[Border]) -> list[_Weights]:
    """The weights before the first place, from each one to the next, and behind the last."""
    starts = [0, *(place.at + 1 for place in places), len(nodes)]
    return [
        frozenset[ir.Value]().union(*(needs.weights(node) for node in nodes[start:end]))
        for start, end in pairwise(starts)
    ]


def _balanced(weights: Sequence[_Weights], count: int) -> list[int]:
    """Behind which of ``weights`` to cut, so that the largest of ``count`` parts is as small as can be."""
    size = _sizes(weights)
    num = len(weights)
    best: list[tuple[float, tuple[int, ...]]] = [(size.get((0, end), math.inf), ()) for end in range(num + 1)]
    for _ in range(count - 1):
        best = [
            min(
                ((max(best[at][0], size[at, end]), (*best[at][1], at)) for at in range(1, end)),
                default=(math.inf, ()),
            )
            for end in range(num + 1)
        ]
    return [at - 1 for at in best[num][1]]


def _sizes(weights: Sequence[_Weights]) -> dict[tuple[int, int], float]:
    """Bytes of all weights from one index up to another one; what is in several counts once."""
    found: dict[tuple[int, int], float] = {}
    for start in range(len(weights)):
        seen: set[ir.Value] = set()
        total = 0
        for end in range(start, len(weights)):
            total += sum(_bytes(value) for value in weights[end] - seen)
            seen |= weights[end]
            found[start, end + 1] = total
    return found


def _bytes(value: ir.Value) -> int:
    return int(value.const_value.nbytes) if value.const_value is not None else 0


def _named(graph: ir.Graph, chosen: Sequence[Border]) -> list[list[ir.Value]]:
    """What each stage writes for later ones, under its names; nothing for the last."""
    ids = input_of(graph, names.INPUT_IDS)
    assert ids.shape is not None
    tokens = ids.shape[-1]
    found: list[list[ir.Value]] = []
    for stage, border in enumerate(chosen):
        known = {value for values in found for value in values}
        found.append([value for value in border.crossing if value not in known])
        for number, value in enumerate(found[-1]):
            assert value.shape is not None
            value.name = names.stage_value(stage, number)
            value.shape = ir.Shape([size if isinstance(size, int) else tokens for size in value.shape])
    return [*found, []]


def _stages(nodes: Sequence[ir.Node], chosen: Sequence[Border]) -> dict[ir.Node | None, int]:
    return {node: sum(border.at < at for border in chosen) for at, node in enumerate(nodes)}


def _part(model: ir.Model, given: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    """What computes ``outputs`` from the graph's inputs and the values that stages before have ``given``."""
    graph = ir.convenience.extract(model.graph, [*model.graph.inputs, *given], outputs)
    for unused in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(unused)
    return ir.Model(graph, ir_version=model.ir_version, metadata_props=dict(model.metadata_props))
