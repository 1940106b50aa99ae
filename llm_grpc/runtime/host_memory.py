"""Memory of the processor that a GPU copies from without a copy in between: page-locked."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as C  # noqa: N812 - as onnxruntime calls it

from llm_grpc.devices import Device
from llm_grpc.runtime.cuda import PROVIDER

log = logging.getLogger(__name__)


class HostArray:
    """``array`` of ``num_bytes`` uint8, all zero, that ``device`` copies from.

    Pages of a GPU's are locked; where ONNX Runtime cannot lock any, they are not, and the log says so.
    """

    def __init__(self, num_bytes: int, device: Device) -> None:
        self._value = _locked(num_bytes, device) if device.kind == "cuda" else None
        self.array: NDArray[np.uint8] = np.zeros(num_bytes, np.uint8)
        if self._value is not None:
            kind = ctypes.c_uint8 * num_bytes
            self.array = np.ctypeslib.as_array(kind.from_address(self._value.data_ptr()))
            self.array[:] = 0

    @property
    def is_locked(self) -> bool:
        """Whether its pages are."""
        return self._value is not None


def _locked(num_bytes: int, device: Device) -> ort.OrtValue | None:
    try:
        place = _allocator(device.index)
        return ort.OrtValue.ortvalue_from_shape_and_type([num_bytes], np.uint8, memory_info=place)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises its own classes straight under it
        log.warning("host buffers of %s are pageable: %s", device, str(error).partition("\n")[0])
        return None


@cache
def _allocator(index: int) -> Any:
    """Let ONNX Runtime lock pages for a GPU, once for each; where values are then allocated."""
    place = ort.OrtMemoryInfo(
        "CudaPinned", ort.OrtAllocatorType.ORT_DEVICE_ALLOCATOR, index, ort.OrtMemType.CPU_OUTPUT
    )
    options, arena = {"device_id": str(index)}, ort.OrtArenaCfg(0, -1, -1, -1)
    C.create_and_register_allocator_v2(PROVIDER, place, options, arena)
    return place
