"""The memory of what the stages of a model hand on to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from llm_grpc.devices import Device
from llm_grpc.runtime.wiring import Crossing, Wiring


class CrossingBuffers:
    """Buffers for one run at a time, bound to ``bindings``, one for each stage.

    A value is one buffer for its writer and its readers where they share a device, else one on each.
    """

    def __init__(self, wiring: Wiring, devices: Sequence[Device], bindings: Sequence[ort.IOBinding]) -> None:
        self._crossings, self._devices, self._bindings = wiring.crossings, devices, bindings
        self._buffers: dict[tuple[str, Device], Any] = {}
        self._num_tokens = 0

    def resize(self, num_tokens: int) -> None:
        """Make the next run one of ``num_tokens`` packed tokens."""
        if num_tokens == self._num_tokens:
            return
        self._num_tokens = num_tokens
        for crossing in self._crossings:
            stages = (crossing.writer, *crossing.readers)
            for device in {self._devices[stage] for stage in stages}:
                # Bytes can be copied whatever they are: numpy has no bfloat16.
                self._buffers[crossing.name, device] = ort.OrtValue.ortvalue_from_shape_and_type(
                    [crossing.num_bytes(num_tokens)], np.uint8, device.kind, device.index
                )
            for stage in stages:
                binding = self._bindings[stage]
                bind = binding.bind_output if stage == crossing.writer else binding.bind_input
                device = self._devices[stage]
                place = (crossing.element_type, crossing.sizes(num_tokens))
                address = self._buffer(crossing, stage).data_ptr()
                bind(crossing.name, device.kind, device.index, *place, address)

    def hand_on(self, stage: int) -> None:
        """Let the readers have what ``stage`` has written, once its run has ended."""
        for crossing in self._crossings:
            if crossing.writer == stage:
                source = self._buffer(crossing, stage)
                read = {self._devices[reader]: self._buffer(crossing, reader) for reader in crossing.readers}
                _copy(source, [target for target in read.values() if target is not source])

    def _buffer(self, crossing: Crossing, stage: int) -> Any:
        return self._buffers[crossing.name, self._devices[stage]]


def _copy(source: Any, targets: Sequence[Any]) -> None:
    """Copy to buffers on other devices; a run ends when its device is done, so that ``source`` is whole.

    It goes through the processor's memory: onnxruntime's own ``copy_tensors`` has no way between two GPUs
    (1.31: "Data transfer implementation … was not found").
    """
    if targets:
        found = source.numpy()
        for target in targets:
            target.update_inplace(found)
