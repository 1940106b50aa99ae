"""Where a graph can be cut between two layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llm_grpc import graph_names as names
from llm_grpc.errors import ExportError
from llm_grpc.export.passes.reads import reads

_NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"})


@dataclass(frozen=True)
class Border:
    """A cut behind node ``at``, free ones not counted, and the values that cross it, as they are made."""

    at: int
    crossing: tuple[ir.Value, ...]


def borders(nodes: Sequence[ir.Node]) -> list[Border]:
    """Between each two layers the best place to cut ``nodes``, a graph's in order without the free ones.

    That is where the fewest values cross, each of a row for each token; of equal ones where rows are the
    narrowest, then the last: behind the norm before the next attention. A norm stays with the sum it reads,
    whether they are one node already or the runtime makes them one, which rounds otherwise than the two.

    Raises:
        ExportError: there is none between some two layers.
    """
    places = _attention(nodes)
    layers, kept = _layers(places, len(nodes)), _kept_together(nodes)
    best: dict[int, tuple[tuple[int, int, int], Border]] = {}
    for at, live in enumerate(_live(nodes)):
        layer = layers[at]
        widths = [_width(value) for value in live]
        if layer is None or at in kept or None in widths:
            continue
        rank = len(live), sum(width for width in widths if width), -at
        if layer not in best or rank < best[layer][0]:
            best[layer] = rank, Border(at, tuple(live))
    missing = set(range(max(places))) - set(best)
    if missing:
        raise ExportError(f"the graph cannot be cut behind layer {min(missing)}: --stages 1 keeps it whole")
    return [best[layer][1] for layer in sorted(best)]


def _layers(places: Mapping[int, Sequence[int]], num_nodes: int) -> list[int | None]:
    """For each place behind a node the layer whose attention is the last before it.

    None inside of an attention, before the first and behind the last, and where the layers' are not in order.
    """
    found: list[int | None] = [None] * num_nodes
    for layer in range(max(places, default=0)):
        for at in range(max(places[layer]), min(places[layer + 1])):
            found[at] = layer
    return found


def _attention(nodes: Sequence[ir.Node]) -> dict[int, list[int]]:
    """The places of the nodes that read or write each layer's caches."""
    places: dict[int, list[int]] = {}
    for at, node in enumerate(nodes):
        for value in (*reads(node), *node.outputs):
            if (layer := names.layer_of(value.name or "")) is not None:
                places.setdefault(layer, []).append(at)
    return places


def _kept_together(nodes: Sequence[ir.Node]) -> set[int]:
    """Places between a norm and the sum that it reads, or the bias in that sum."""
    place = {node: at for at, node in enumerate(nodes)}
    found: set[int] = set()
    for norm in (node for node in nodes if node.op_type in _NORMS):
        total = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if total is None or total.op_type != "Add":
            continue
        terms = [value.producer() for value in reads(total)]
        biased = [term for term in terms if term is not None and _adds_weight(term)]
        found.update(range(min(place.get(node, len(nodes)) for node in (total, *biased)), place[norm]))
    return found


def _adds_weight(node: ir.Node) -> bool:
    return node.op_type == "Add" and any(value.is_initializer() for value in reads(node))


def _live(nodes: Sequence[ir.Node]) -> Iterator[list[ir.Value]]:
    """Behind each node: the values that were made and are still to be read."""
    last_read = {value: at for at, node in enumerate(nodes) for value in reads(node)}
    live: list[ir.Value] = []
    for at, node in enumerate(nodes):
        live = [value for value in (*live, *node.outputs) if last_read.get(value, -1) > at]
        yield live


def _width(value: ir.Value) -> int | None:
    """Numbers for each token; None for a value that is not a row for each."""
    if value.shape is None or value.type is None:
        return None
    fixed = [size for size in value.shape if isinstance(size, int)]
    if len(fixed) != len(value.shape) - 1:
        return None
    width = 1
    for size in fixed:
        width *= size
    return width
