"""The memory of what the stages of a model hand on to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from llm_grpc.devices import CPU, Device
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
            for device in {self._devices[stage] for stage in (crossing.writer, *crossing.readers)}:
                self._buffers[crossing.name, device] = ort.OrtValue.ortvalue_from_shape_and_type(
                    crossing.sizes(num_tokens), crossing.element_type, device.kind, device.index
                )
            written = self._buffer(crossing, crossing.writer)
            self._bindings[crossing.writer].bind_ortvalue_output(crossing.name, written)
            for reader in crossing.readers:
                self._bindings[reader].bind_ortvalue_input(crossing.name, self._buffer(crossing, reader))

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

    ``copy_tensors`` knows the devices of a build, and has no way between two places of the processor.
    """
    if source.device_name() == CPU.kind:
        for target in targets:
            target.update_inplace(source.numpy())
    elif targets:
        ort.copy_tensors([source] * len(targets), targets)
