"""What pynvml says on a machine with GPUs, as far as it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from llm_grpc.runtime.gpus import Driver, Gpu, Version

H200 = Gpu("NVIDIA H200", "GPU-1111", Version(9, 0), 139 << 30, 138 << 30)
T4 = Gpu("Tesla T4", "GPU-2222", Version(7, 5), 15 << 30, 14 << 30)
L4 = Gpu("NVIDIA L4", "GPU-3333", Version(8, 9), 22 << 30, 21 << 30)


def driver(*gpus: Gpu, version: str = "580.95.05", cuda: tuple[int, int] = (13, 0)) -> Driver:
    return Driver(version, Version(*cuda), gpus)


class NvmlError(Exception):
    """As pynvml.NVMLError, whose text is the driver's."""


@dataclass
class FakeNvml:
    """The functions that are called, over ``gpus``; ``fault`` is what the first of them raises."""

    gpus: Sequence[Gpu] = ()
    version: str = "580.95.05"
    cuda: int = 13000
    fault: str = ""
    is_open: bool = False

    NVMLError = NvmlError

    def nvmlInit(self) -> None:
        if self.fault:
            raise NvmlError(self.fault)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> str:
        assert self.is_open
        return self.version

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        assert self.is_open
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        assert self.is_open
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        assert self.is_open
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: Gpu) -> str:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: Gpu) -> str:
        return handle.uuid

    def nvmlDeviceGetCudaComputeCapability(self, handle: Gpu) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetMemoryInfo(self, handle: Gpu) -> SimpleNamespace:
        return SimpleNamespace(total=handle.total_bytes, free=handle.free_bytes)
