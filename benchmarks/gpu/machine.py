"""The GPU that is measured on: its name, and what its memory could do at best."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from llm_grpc.runtime.cuda import installed_runtime


@dataclass(frozen=True)
class Machine:
    """``bytes_per_s`` of the GPU's memory by its clock and width; 0 where there is no GPU.

    ``copied_bytes_per_s`` are those of copies within it, read and written; 0 where they were not measured.
    """

    gpu: str
    driver: str
    runtime: str
    bytes_per_s: float
    processors: int
    copied_bytes_per_s: float = 0.0


def find_machine(nvml: Any = None) -> Machine:
    """Ask ``nvml`` of GPU 0; the processor alone where there is no pynvml."""
    processors = os.cpu_count() or 1
    try:
        nvml = nvml or import_module("pynvml")
    except ModuleNotFoundError:
        return Machine("no GPU", "none", installed_runtime(), 0.0, processors)
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    mega_hertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    bits = nvml.nvmlDeviceGetMemoryBusWidth(handle)
    return Machine(
        nvml.nvmlDeviceGetName(handle),
        nvml.nvmlSystemGetDriverVersion(),
        installed_runtime(),
        # Two transfers a clock.
        2.0 * mega_hertz * 1e6 * bits / 8,
        processors,
    )


def gpu_meter(nvml: Any = None) -> Callable[[], int]:
    """Reads the bytes in use on GPU 0, by whomever."""
    nvml = nvml or import_module("pynvml")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)


def resident_meter(pid: int) -> Callable[[], int]:
    """Reads the resident bytes of a process."""
    path = Path(f"/proc/{pid}/statm")
    page = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(path.read_text(encoding="ascii").split()[1]) * page
