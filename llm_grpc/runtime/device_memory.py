"""Arrays in the memory of a device, at addresses that stay, and what is copied to and from them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from llm_grpc.devices import Device
from llm_grpc.errors import StartupError
from llm_grpc.runtime.denormals import flushed_denormals

ELEMENT_TYPES = {
    "float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11, "bfloat16": 16,
}  # fmt: skip
"""Numbers of the types in ONNX."""


class Traffic:
    """Bytes that were copied to and from a device since the start; counters for tests and benchmarks."""

    def __init__(self) -> None:
        self.to_device = 0
        self.from_device = 0


class DeviceArray:
    """``shape`` of ``dtype``, a key of ``ELEMENT_TYPES``, on ``device``.

    Zeros on the processor, which has no bfloat16; anything on a GPU.

    Raises:
        StartupError: there is no memory for it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device: Device, traffic: Traffic) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._traffic = traffic
        try:
            self._value = _allocated(shape, dtype, device)
        except Exception as error:  # onnxruntime raises its own classes straight under Exception
            reason = str(error).splitlines()[0]
            raise StartupError(f"{device} has no memory for {dtype} {list(shape)}: {reason}") from error
        self.address = int(self._value.data_ptr())

    def write(self, array: NDArray[Any]) -> None:
        """Copy ``array``, of the same shape and type, to the device; done when this returns."""
        self._traffic.to_device += array.nbytes
        self._value.update_inplace(array)

    def read(self) -> NDArray[Any]:
        """What the device has; valid until the next run."""
        array: NDArray[Any] = self._value.numpy()
        self._traffic.from_device += array.nbytes
        return array


def _allocated(shape: tuple[int, ...], dtype: str, device: Device) -> ort.OrtValue:
    if device.kind == "cpu":
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))
    number = ELEMENT_TYPES[dtype]
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, number, device.kind, device.index)


class Binding(Protocol):
    """One set of bound inputs and outputs of a model."""

    def bind_input(
        self, name: str, device: Device, element_type: int, shape: tuple[int, ...], address: int
    ) -> None:
        """Let input ``name`` be what lies at ``address``."""
        ...

    def bind_output(
        self, name: str, device: Device, element_type: int, shape: tuple[int, ...], address: int
    ) -> None:
        """Let output ``name`` go to ``address``."""
        ...

    def run(self, graph: int | None) -> None:
        """Compute, and be done. ``graph`` numbers a step that may be recorded once and replayed."""
        ...


class SessionBinding:
    """The ``Binding`` of one session."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session, self.io_binding = session, session.io_binding()

    def bind_input(
        self, name: str, device: Device, element_type: int, shape: tuple[int, ...], address: int
    ) -> None:
        """Let input ``name`` be what lies at ``address``."""
        self.io_binding.bind_input(name, device.kind, device.index, element_type, shape, address)

    def bind_output(
        self, name: str, device: Device, element_type: int, shape: tuple[int, ...], address: int
    ) -> None:
        """Let output ``name`` go to ``address``."""
        self.io_binding.bind_output(name, device.kind, device.index, element_type, shape, address)

    def run(self, graph: int | None) -> None:
        """Run the session; releases the GIL."""
        options = ort.RunOptions()
        # The provider records a step the first time it sees its number, and never one of number -1.
        options.add_run_config_entry("gpu_graph_id", "-1" if graph is None else str(graph))
        with flushed_denormals():
            self._session.run_with_iobinding(self.io_binding, options)
