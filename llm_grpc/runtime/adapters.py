"""Adapters as a graph reads them: all that are loaded side by side, and which columns a token's are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.adapter_manifest import ADAPTER_WEIGHTS, adapter_digest, load_adapter_manifest
from llm_grpc.adapter_room import AdaptedLinear, AdapterRoom
from llm_grpc.devices import Device
from llm_grpc.engine.adapters import AdapterWeights
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk
from llm_grpc.errors import ManifestError
from llm_grpc.runtime.device_memory import ELEMENT_TYPES, Binding, DeviceArray, Traffic

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LoRA:
    """The matrices ``[rows, r]`` and ``[r, columns]`` of each module that an adapter changes; r is at most
    ``rank``.
    """

    rank: int
    digest: str
    matrices: Mapping[str, tuple[Floats, Floats]]


@dataclass(frozen=True)
class Stack:
    """Adapters side by side: ``arrays`` are inputs of the graph by name, ``columns`` those of each number."""

    width: int
    columns: Mapping[int, slice]
    arrays: Mapping[str, Floats]

    def rows(self, decode: Sequence[DecodeRow], chunks: Sequence[PrefillChunk], num_tokens: int) -> Floats:
        """The mask ``[num_tokens, width]`` of packed tokens; those behind the chunks' have no adapter.

        One that is not here any more changes nothing: dummy rows alone name it, in slots that no request
        finds.
        """
        counts = [(row.adapter, 1) for row in decode]
        counts += [(chunk.adapter, len(chunk.tokens)) for chunk in chunks]
        mask = np.zeros((num_tokens, self.width), np.float32)
        first = 0
        for adapter, count in counts:
            if adapter in self.columns:
                mask[first : first + count, self.columns[adapter]] = 1
            first += count
        return mask


class AdapterMemory:
    """The matrices of one stage of a model, on its device, at addresses that stay; as wide as the room."""

    def __init__(self, room: AdapterRoom, known: frozenset[str], device: Device, traffic: Traffic) -> None:
        self._arrays: dict[str, DeviceArray] = {}
        for index, linear in enumerate(room.linears):
            if names.adapter_down(index) in known:
                width = len(linear.parts) * room.max_rank
                for name, shape in (
                    (names.adapter_down(index), (linear.rows, width)),
                    (names.adapter_up(index), (width, linear.columns)),
                ):
                    self._arrays[name] = DeviceArray(shape, "float32", device, traffic)

    def write(self, stack: Stack) -> None:
        """Let runs compute with ``stack``, which is as wide as the room."""
        for name, array in self._arrays.items():
            array.write(stack.arrays[name])

    def bind(self, binding: Binding) -> int:
        """Let a run read the matrices; the number of binds that took."""
        for name, array in self._arrays.items():
            binding.bind_input(name, array.device, ELEMENT_TYPES[array.dtype], array.shape, array.address)
        return len(self._arrays)


class Adapters:
    """Those of one runner: ``use`` gives its bindings another ``Stack``.

    A stack is as wide as the adapters in it, or always ``max_rank`` where its shape ``is_fixed``.
    """

    def __init__(self, room: AdapterRoom, use: Callable[[Stack], None], is_fixed: bool = False) -> None:
        self._room, self._use, self._is_fixed = room, use, is_fixed
        self.max_rank = room.max_rank

    def read(self, directory: Path) -> LoRA:
        """Read an adapter directory.

        Raises:
            ManifestError: it is damaged, or no adapter of this model.
        """
        return read_adapter(directory, self._room)

    def arranged(self, chosen: Mapping[int, AdapterWeights]) -> Callable[[], None]:
        """What lets steps use ``chosen``, which are results of ``read``."""
        stack = self.stack(cast(Mapping[int, LoRA], chosen))
        return lambda: self._use(stack)

    def stack(self, chosen: Mapping[int, LoRA]) -> Stack:
        """Put adapters side by side, in the order of their numbers."""
        columns, end = dict[int, slice](), 0
        for number, adapter in sorted(chosen.items()):
            columns[number] = slice(end, end + adapter.rank)
            end += adapter.rank
        width = self.max_rank if self._is_fixed else end
        arrays: dict[str, Floats] = {}
        for index, linear in enumerate(self._room.linears):
            down, up = _side_by_side(linear, chosen, columns, width)
            arrays[names.adapter_down(index)], arrays[names.adapter_up(index)] = down, up
        return Stack(width, columns, arrays)


def _side_by_side(
    linear: AdaptedLinear, chosen: Mapping[int, LoRA], columns: Mapping[int, slice], width: int
) -> tuple[Floats, Floats]:
    """``[K, P * width]`` and ``[P * width, N]`` of one linear of P parts."""
    down = np.zeros((linear.rows, len(linear.parts) * width), np.float32)
    up = np.zeros((down.shape[1], linear.columns), np.float32)
    first = 0
    for part, (module, size) in enumerate(linear.parts.items()):
        for number, adapter in chosen.items():
            if module in adapter.matrices:
                a, b = adapter.matrices[module]
                start = part * width + columns[number].start
                down[:, start : start + a.shape[1]] = a
                up[start : start + len(b), first : first + size] = b
        first += size
    return down, up


def read_adapter(directory: Path, room: AdapterRoom) -> LoRA:
    """Read and check an adapter for a model with ``room``.

    Raises:
        ManifestError: it is damaged, of another model, or has matrices of other shapes.
    """
    manifest = load_adapter_manifest(directory)
    path = directory / ADAPTER_WEIGHTS
    if manifest.base != room.base:
        raise ManifestError(f"{directory} is an adapter of another model: export it for this one")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {
                module: (arrays[f"{module}.down"], arrays[f"{module}.up"]) for module in manifest.modules
            }
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ManifestError(f"{path} is damaged: {error}") from None
    for module, pair in found.items():
        _check(path, module, pair, room.modules.get(module), manifest.rank)
    return LoRA(manifest.rank, adapter_digest(directory), found)


def _check(
    path: Path, module: str, pair: tuple[Floats, Floats], wanted: tuple[int, int] | None, rank: int
) -> None:
    if wanted is None:
        raise ManifestError(f"{path}: the model has no {module} that an adapter can change")
    down, up = pair
    rows, columns = wanted
    shapes = f"{module} has {list(down.shape)} and {list(up.shape)}"
    is_pair = down.ndim == up.ndim == 2 and down.shape[1] == up.shape[0] <= rank
    if not is_pair or (down.shape[0], up.shape[1]) != wanted:
        raise ManifestError(
            f"{path}: {shapes}, and the model takes [{rows}, r] and [r, {columns}], r at most {rank}"
        )
    if down.dtype != np.float32 or up.dtype != np.float32:
        raise ManifestError(f"{path}: {module} is {down.dtype} and {up.dtype}, and must be float32")
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise ManifestError(f"{path}: {module} has values that are not finite")
