"""IO binding that binds again only what changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.runtime.slot_pool import SlotPool
from llm_grpc.runtime.staged_session import StagedSession


class StepBindings:
    """The bound memory of one session: host buffers for inputs and logits, the pool for the caches.

    Binding a name costs about 8 microseconds, so a buffer keeps its binding while its shape stays, and the
    caches keep theirs while the number of decode rows or the chunk's slot does.
    """

    def __init__(self, session: StagedSession, pool: SlotPool) -> None:
        self._binding = session.io_binding()
        self._pool = pool
        self._inputs = {node.name for node in session.get_inputs()}
        self._buffers: dict[str, NDArray[Any]] = {}
        self._slots: dict[str, tuple[int, int]] = {}
        self.num_binds = 0

    def put(self, name: str, values: Any, dtype: type[np.generic]) -> None:
        """Set the input ``name``; an input that the graph does not have is passed over."""
        if name not in self._inputs:
            return
        array = np.asarray(values, dtype)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != array.shape:
            buffer = self._buffers[name] = np.empty_like(array)
            self._binding.bind_input(name, "cpu", 0, dtype, buffer.shape, buffer.ctypes.data)
            self.num_binds += 1
        buffer[...] = array

    def bind_inputs(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Let inputs be ``arrays`` themselves, which the caller keeps as long as they are."""
        for name, array in arrays.items():
            place = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            self._binding.bind_input(name, *place)
            self.num_binds += 1

    def put_slots(self, half: str, first: int, count: int) -> None:
        """Point the caches of ``half`` at ``count`` slots from ``first`` on."""
        if self._slots.get(half) == (first, count):
            return
        self._slots[half] = (first, count)
        for layer, kind, view in self._pool.views(first, count):
            place = ("cpu", 0, view.dtype.type, view.shape, view.ctypes.data)
            self._binding.bind_input(names.past(layer, kind, half), *place)
            self._binding.bind_output(names.present(layer, kind, half), *place)
            self.num_binds += 2

    def logits(self, rows: int, vocabulary: int) -> NDArray[np.float32]:
        """The buffer ``[rows, vocabulary]`` that the next run fills."""
        buffer = self._buffers.get(names.LOGITS)
        if buffer is None or buffer.shape[0] != rows:
            buffer = self._buffers[names.LOGITS] = np.empty((rows, vocabulary), np.float32)
            self._binding.bind_output(names.LOGITS, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            self.num_binds += 1
        return buffer

    def run(self, stage: int) -> None:
        """Run one stage of the session, after those before it; releases the GIL."""
        self._binding.run_stage(stage)
