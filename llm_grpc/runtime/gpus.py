"""The NVIDIA driver of this machine and its GPUs, as NVML tells of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_grpc.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_DRIVER = "580"
"""The branch of NVIDIA's Linux driver that CUDA 13 came with."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Version(NamedTuple):
    """Of CUDA, or of a GPU's instructions (compute capability)."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True)
class Gpu:
    """One GPU; its memory as it is now."""

    name: str
    uuid: str
    capability: Version
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Driver:
    """``cuda`` is the newest CUDA that the driver runs; ``gpus`` are those of this process, by number."""

    version: str
    cuda: Version
    gpus: tuple[Gpu, ...]


def find_driver(nvml: Any = None) -> Driver:
    """Ask ``nvml``, which is the module ``pynvml`` where none is given.

    Raises:
        StartupError: pynvml is not installed, there is no driver, or it does not answer.
    """
    nvml = nvml or _pynvml()
    try:
        with _session(nvml):
            # CUDA counts the fastest GPU first unless it is told to count as NVML does. Read at its start.
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            newest = nvml.nvmlSystemGetCudaDriverVersion()
            gpus = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
            return Driver(
                nvml.nvmlSystemGetDriverVersion(),
                Version(newest // 1000, newest % 1000 // 10),
                visible(gpus, os.environ.get(VISIBLE)),
            )
    except nvml.NVMLError as error:
        raise StartupError(
            f"no NVIDIA driver answers ({error}): install driver {LEAST_DRIVER} or newer, and let a "
            "container have the GPU (docker run --gpus all)"
        ) from error


def visible(gpus: Iterable[Gpu], chosen: str | None) -> tuple[Gpu, ...]:
    """Those that ``chosen``, the text of CUDA_VISIBLE_DEVICES, leaves, in its order; all where it is None.

    As CUDA reads it: numbers, or beginnings of UUIDs; what follows one that there is not does not count.
    """
    found = tuple(gpus)
    if chosen is None:
        return found
    left: list[Gpu] = []
    for word in chosen.split(","):
        gpu = _named(found, word.strip())
        if gpu is None or gpu in left:
            break
        left.append(gpu)
    return tuple(left)


def _named(gpus: tuple[Gpu, ...], word: str) -> Gpu | None:
    if word.isdecimal():
        return gpus[int(word)] if int(word) < len(gpus) else None
    found = [gpu for gpu in gpus if word and gpu.uuid.startswith(word)]
    return found[0] if len(found) == 1 else None


def _pynvml() -> Any:
    try:
        return import_module("pynvml")
    except ModuleNotFoundError:
        raise StartupError(
            "nvidia-ml-py, which finds GPUs, is not installed: pip install 'llm-grpc[cuda]'"
        ) from None


@contextmanager
def _session(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        nvml.nvmlDeviceGetName(handle),
        nvml.nvmlDeviceGetUUID(handle),
        Version(*nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        memory.total,
        memory.free,
    )
