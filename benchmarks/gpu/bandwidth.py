"""Bytes that the memory of GPU 0 moves a second: ``python -m benchmarks.gpu.bandwidth [BYTES]``."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from typing import Any

from llm_grpc.errors import LLMGrpcError
from llm_grpc.runtime.cuda import check_libraries

COPIED_BYTES = 1 << 29
"""More than a cache on the chip holds."""

COPIES, ROUNDS = 16, 5
LIMIT_S = 60.0
_DEVICE_TO_DEVICE = 3


def copy_bandwidth(runtime: Any, num_bytes: int = COPIED_BYTES) -> float:
    """Bytes read and written a second by copies within the GPU's memory, in the best of some rounds.

    ``runtime`` is the library libcudart.

    Raises:
        LLMGrpcError: one of its functions failed.
    """
    source, target, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t(num_bytes)

    def call(name: str, *arguments: object) -> None:
        if code := getattr(runtime, name)(*arguments):
            raise LLMGrpcError(f"{name} failed with code {code}")

    for pointer in (source, target):
        call("cudaMalloc", ctypes.byref(pointer), size)
    took_s = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(COPIES):
            call("cudaMemcpyAsync", target, source, size, _DEVICE_TO_DEVICE, None)
        call("cudaDeviceSynchronize")
        took_s.append(time.perf_counter() - started)
    return 2 * num_bytes * COPIES / min(took_s)


def measure(num_bytes: int = COPIED_BYTES) -> float:
    """``copy_bandwidth`` of a process of its own, which leaves nothing on the GPU; 0 where it fails."""
    command = [sys.executable, "-m", __name__, str(num_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if done.returncode:
        print(f"memory was not measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return 0.0
    return float(done.stdout)


if __name__ == "__main__":
    check_libraries()
    print(copy_bandwidth(ctypes.CDLL("libcudart.so.13"), *map(int, sys.argv[1:])))
