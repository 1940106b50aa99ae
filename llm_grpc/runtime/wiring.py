"""Which stage of a model has which inputs and outputs, and what stages hand on to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from llm_grpc import graph_names as names
from llm_grpc.errors import ManifestError

_ELEMENT_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
"""ONNX's numbers for the types of what crosses."""

_ITEM_BYTES = {1: 4, 10: 2, 16: 2}

_Nodes = dict[str, dict[int, Any]]
"""Inputs or outputs by name, then by stage."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value that stage ``writer`` hands to the stages ``readers``; ``shape`` has None where T is,
    the number of packed tokens.
    """

    name: str
    element_type: int
    shape: tuple[int | None, ...]
    writer: int
    readers: tuple[int, ...]

    def sizes(self, num_tokens: int) -> list[int]:
        """The shape for ``num_tokens``."""
        return [num_tokens if size is None else size for size in self.shape]

    def num_bytes(self, num_tokens: int) -> int:
        """The memory of that."""
        return math.prod(self.sizes(num_tokens)) * _ITEM_BYTES[self.element_type]


class Wiring:
    """Of the sessions of a model's stages, in their order.

    Raises:
        ManifestError: an output or a cache is in two stages, or one reads what none before it writes.
    """

    def __init__(self, sessions: Sequence[ort.InferenceSession]) -> None:
        self._inputs = _by_name(session.get_inputs() for session in sessions)
        self._outputs = _by_name(session.get_outputs() for session in sessions)
        caches = {name: at for name, at in self._inputs.items() if names.layer_of(name) is not None}
        for name, stages in (*self._outputs.items(), *caches.items()):
            if len(stages) > 1:
                said = " and ".join(str(stage + 1) for stage in stages)
                raise ManifestError(f"stages {said} both have {name}: export again")
        self.crossings = tuple(self._crossings())

    def inputs(self) -> Iterator[Any]:
        """What is bound from outside, each name once, as the first stage that has it describes it."""
        return (next(iter(nodes.values())) for name, nodes in self._inputs.items() if not _crosses(name))

    def outputs(self) -> Iterator[Any]:
        """What comes out; not what goes on to other stages."""
        return (next(iter(nodes.values())) for name, nodes in self._outputs.items() if not _crosses(name))

    def readers(self, name: str) -> Iterable[int]:
        """The stages that have the input ``name``."""
        return self._inputs[name]

    def writer(self, name: str) -> int:
        """The stage that has the output ``name``."""
        return next(iter(self._outputs[name]))

    def _crossings(self) -> Iterator[Crossing]:
        for name, readers in self._inputs.items():
            if _crosses(name):
                yield _crossing(name, self._outputs.get(name, {}), readers)


def _by_name(stages: Iterable[Iterable[Any]]) -> _Nodes:
    found: _Nodes = {}
    for stage, nodes in enumerate(stages):
        for node in nodes:
            found.setdefault(node.name, {})[stage] = node
    return found


def _crosses(name: str) -> bool:
    return name.startswith(names.STAGE_VALUE)


def _crossing(name: str, writers: dict[int, Any], readers: dict[int, Any]) -> Crossing:
    first = min(readers)
    if not writers or min(writers) >= first:
        raise ManifestError(f"stage {first + 1} reads {name}, and none before writes it: export again")
    ((writer, node),) = writers.items()
    shape = _shape(node)
    alike = all((reader.type, _shape(reader)) == (node.type, shape) for reader in readers.values())
    if not alike or node.type not in _ELEMENT_TYPES or shape.count(None) != 1:
        raise ManifestError(f"the stages do not agree on {name}, {node.type} {node.shape}: export again")
    return Crossing(name, _ELEMENT_TYPES[node.type], shape, writer, tuple(readers))


def _shape(node: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in node.shape)
