"""The bound memory of steps over blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.devices import CPU, Device
from llm_grpc.manifest import KvCache
from llm_grpc.runtime.device_memory import ELEMENT_TYPES, Binding, DeviceArray, Traffic
from llm_grpc.runtime.host_memory import HostArray
from llm_grpc.runtime.logits_memory import LogitsMemory
from llm_grpc.runtime.paged_step import Arrays

_ALIGNMENT = 256
"""Bytes; what memory that a GPU hands out begins at."""


class BlockPool:
    """The cache of ``layers``: ``[num_blocks + 1, block_size, heads, head_dim]`` for each of them and kind.

    The last block is scratch. Of a GPU all of it is taken at once; on the processor it costs what is used.

    Raises:
        StartupError: there is no memory for it.
    """

    def __init__(
        self, shape: KvCache, layers: Iterable[int], num_blocks: int, block_size: int, device: Device,
        traffic: Traffic,
    ) -> None:  # fmt: skip
        self.scratch = num_blocks
        size = (num_blocks + 1, block_size, shape.num_heads, shape.head_dim)
        self.arrays = {
            (layer, kind): DeviceArray(size, shape.dtype, device, traffic)
            for layer in layers
            for kind in names.KINDS
        }

    def bind(self, binding: Binding) -> int:
        """Let a run read and write the cache; the number of binds that took."""
        for (layer, kind), array in self.arrays.items():
            place = (array.device, ELEMENT_TYPES[array.dtype], array.shape, array.address)
            binding.bind_input(names.past_blocks(layer, kind), *place)
            binding.bind_output(names.present_blocks(layer, kind), *place)
        return 2 * len(self.arrays)


class RowOutputs:
    """Of ``rows`` rows the most likely tokens, int64 ``[rows]``, and where in ``logits`` theirs go: first."""

    def __init__(self, rows: int, logits: LogitsMemory, device: Device, traffic: Traffic) -> None:
        self.rows, self.logits = rows, logits
        self.greedy = DeviceArray((rows,), "int64", device, traffic)

    def bind(self, binding: Binding) -> int:
        """Let a run write them; the number of binds that took."""
        logits = self.logits.array
        wide = (self.rows, *logits.shape[1:])
        for name, array, shape in (
            (names.GREEDY, self.greedy, self.greedy.shape),
            (names.LOGITS, logits, wide),
        ):
            binding.bind_output(name, array.device, ELEMENT_TYPES[array.dtype], shape, array.address)
        return 2


class Resident(Protocol):
    """Memory whose addresses stay as long as the model is there."""

    def bind(self, binding: Binding) -> int:
        """Let a run use it; the number of binds that took."""
        ...


class PagedBinding:
    """The memory that one stage's steps up to one size are bound to; its addresses stay as long as it lives.

    ``known`` are the names that the stage has; others are passed over. ``resident`` is bound once.
    All inputs lie in one array, so that a step copies once to the device. ``attention_bounds`` is read by the
    processor and lies in its memory.
    """

    def __init__(
        self, binding: Binding, known: frozenset[str], most: Arrays, resident: Sequence[Resident],
        device: Device, traffic: Traffic,
    ) -> None:  # fmt: skip
        self._binding, self._known = binding, known
        self._bounds = np.zeros(3, np.int32)
        copied = {name: array for name, array in most.items() if name in known - {names.ATTENTION_BOUNDS}}
        self._offsets, total = _layout(copied)
        self._host = HostArray(total, device)
        self._device = DeviceArray((total,), "uint8", device, traffic)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outputs: RowOutputs | None = None
        self.num_binds = sum(memory.bind(binding) for memory in resident)
        place = (CPU, ELEMENT_TYPES["int32"], self._bounds.shape, self._bounds.ctypes.data)
        self._bind_input(names.ATTENTION_BOUNDS, *place)

    def put(self, arrays: Arrays, outputs: RowOutputs) -> None:
        """Set the inputs of the next run, and where its outputs go."""
        self._bounds[...] = arrays[names.ATTENTION_BOUNDS]
        for name, offset in self._offsets.items():
            array = arrays[name]
            self._host.array[offset : offset + array.nbytes] = _bytes(array)
            if self._shapes.get(name) != array.shape:
                self._shapes[name] = array.shape
                place = (array.shape, self._device.address + offset)
                self._bind_input(name, self._device.device, ELEMENT_TYPES[array.dtype.name], *place)
        self._device.write(self._host.array)
        if self._outputs is not outputs:
            self._outputs = outputs
            if names.LOGITS in self._known:  # else another stage has them
                self.num_binds += outputs.bind(self._binding)

    def run(self, graph: int | None) -> None:
        """Compute the step; ``graph`` numbers one that may be recorded."""
        self._binding.run(graph)

    def _bind_input(self, name: str, device: Device, kind: int, shape: tuple[int, ...], address: int) -> None:
        if name in self._known:
            self._binding.bind_input(name, device, kind, shape, address)
            self.num_binds += 1


def _layout(arrays: Arrays) -> tuple[dict[str, int], int]:
    """Where each array begins in one of bytes, and how many bytes that has."""
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = end
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def largest(tokens: int, sequences: int, places: int, rows: int, ranks: int = 0) -> Arrays:
    """Arrays of the shapes of a step of that size; ``ranks`` are those that there is room for."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        names.INPUT_IDS: ((1, tokens), np.int64),
        names.POSITION_IDS: ((1, tokens), np.int64),
        names.LOGIT_ROWS: ((rows,), np.int64),
        names.SEQUENCE_ENDS: ((sequences + 1,), np.int32),
        names.PAST_LENGTHS: ((sequences,), np.int32),
        names.SLOT_MAPPING: ((tokens,), np.int32),
        names.BLOCK_TABLE: ((sequences, places), np.int32),
        names.ATTENTION_BOUNDS: ((3,), np.int32),
        names.ADAPTER_ROWS: ((tokens, ranks), np.float32),
    }
    return {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in shapes.items()}
