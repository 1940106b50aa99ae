"""The memory of logits on a device, and reading single rows of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_grpc.devices import Device
from llm_grpc.engine.step_budget import TILE
from llm_grpc.engine.step_plan import MAX_SCORED_ROWS
from llm_grpc.runtime.device_memory import ELEMENT_TYPES, DeviceArray, SessionBinding, Traffic
from llm_grpc.runtime.paged_step import bucket_of
from llm_grpc.runtime.session import open_session

_GRAPH = Path(__file__).with_name("row.onnx")
"""``found [1, width]`` is row ``row`` int64 ``[1]`` of ``table [rows, width]``."""


def most_rows(max_running: int) -> int:
    """Rows of logits of a scheduler's steps at most: of all that run or of one's guesses, and of scores."""
    return bucket_of(max(max_running, TILE) + MAX_SCORED_ROWS)


class LogitsMemory:
    """Logits fp32 ``[rows, vocabulary]``. Those of a step of fewer rows are the first ones, and as wide, so
    that all steps share one memory at one address.

    Raises:
        StartupError: there is no memory for it.
    """

    def __init__(self, rows: int, vocabulary: int, device: Device, traffic: Traffic) -> None:
        self.array = DeviceArray((rows, vocabulary), "float32", device, traffic)
        self._row = DeviceArray((1,), "int64", device, traffic)
        self._found = DeviceArray((1, vocabulary), "float32", device, traffic)
        self._binding = SessionBinding(open_session(_GRAPH, 1, device=device))
        for name, array in (("table", self.array), ("row", self._row)):
            kind = ELEMENT_TYPES[array.dtype]
            self._binding.bind_input(name, device, kind, array.shape, array.address)
        kind = ELEMENT_TYPES[self._found.dtype]
        self._binding.bind_output("found", device, kind, self._found.shape, self._found.address)

    def read(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """A copy of ``rows``, in this order: what others hold stays on the device."""
        found = np.empty((len(rows), self.array.shape[1]), np.float32)
        for place, row in enumerate(rows):
            self._row.write(np.array([row]))
            self._binding.run(None)
            found[place] = self._found.read()[0]
        return found
