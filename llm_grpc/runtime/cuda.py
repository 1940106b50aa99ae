"""What has to be there before a model runs on an NVIDIA GPU, and ONNX Runtime's provider for it.

ONNX Runtime computes on the CPU where its CUDA provider does not load, and says so in its log alone. Here
each thing that it lacks is an error of one line that says what to install or to change.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import onnxruntime as ort

from llm_grpc.devices import Device
from llm_grpc.errors import StartupError
from llm_grpc.runtime.gpus import LEAST_DRIVER, VISIBLE, Driver, Gpu, Version, find_driver

PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
INSTALL = "pip install 'llm-grpc[cuda]'"

CUDA = Version(13, 0)
"""What onnxruntime-gpu is built for, from 1.31 on."""

PAGED_CAPABILITY = Version(8, 0)
"""The oldest with kernels for attention over a paged cache, and with arithmetic in bfloat16: Ampere."""

BUILT_FOR = {8: range(100), 9: range(1), 12: range(1)}
"""Compute capabilities that onnxruntime-gpu 1.31 has machine code for on x86-64, minor ones by major one.

It has none that a driver could compile for others: those of 9.0 and 12.0 run on no neighbour either.
"""

LIBRARIES = {
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcublas.so.13": "nvidia-cublas",
    "libcurand.so.10": "nvidia-curand",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
}
"""What the provider is linked with, and cuDNN, which it loads; with the packages that hold it."""

_OPTIONS = {
    # The arena would otherwise take up to twice of what it is asked for.
    "arena_extend_strategy": "kSameAsRequested",
    # fp32 in a graph is there because 16 bits are not enough: TF32 has a mantissa of 10.
    "use_tf32": "0",
}

_ERRORS = 3
"""The level at which ONNX Runtime logs errors, and nothing less."""

Find = Callable[[], Driver]


def installed_runtime() -> str:
    """Name and version of the distribution that ``import onnxruntime`` comes from."""
    names = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    return ", ".join(f"{name} {_version(name)}" for name in names) or f"onnxruntime {ort.__version__}"


def providers() -> list[str]:
    """Those that this build of ONNX Runtime has, whether they load or not."""
    return list(ort.get_available_providers())


def check_build() -> None:
    """Raises StartupError where this build of ONNX Runtime is one for CPUs."""
    if PROVIDER in providers():
        return
    if _version("onnxruntime-gpu"):
        raise StartupError(
            "onnxruntime and onnxruntime-gpu are one module, and both are installed: pip uninstall -y "
            f"onnxruntime onnxruntime-gpu, then {INSTALL}"
        )
    raise StartupError(
        f"{installed_runtime()} is a build for CPUs: pip uninstall -y onnxruntime, then {INSTALL}"
    )


def check_driver(driver: Driver) -> None:
    """Raises StartupError where the driver is older than CUDA 13."""
    if driver.cuda < CUDA:
        raise StartupError(
            f"the NVIDIA driver is {driver.version}, which runs CUDA up to {driver.cuda}, and "
            f"onnxruntime-gpu needs {CUDA}: install driver {LEAST_DRIVER} or newer"
        )


def check_gpu(driver: Driver, index: int, processor: str = platform.machine()) -> Gpu:
    """The GPU ``index``.

    Raises:
        StartupError: there is none of that number, or it is too old, or this build has no code for it.
    """
    if index >= len(driver.gpus):
        there = ", ".join(f"cuda:{number} {gpu.name}" for number, gpu in enumerate(driver.gpus)) or "no GPU"
        chosen = os.environ.get(VISIBLE)
        left = f" ({VISIBLE} is {chosen!r})" if chosen is not None else ""
        raise StartupError(f"device is cuda:{index}, and there is {there}{left}")
    gpu = driver.gpus[index]
    found = f"cuda:{index}, {gpu.name}, has compute capability {gpu.capability}, and "
    if gpu.capability < PAGED_CAPABILITY:
        raise StartupError(f"{found}{PAGED_CAPABILITY} is needed: use a newer GPU, or a model for CPUs")
    if processor == "x86_64" and gpu.capability.minor not in BUILT_FOR.get(gpu.capability.major, ()):
        built = "8.x, 9.0 and 12.0"
        raise StartupError(
            f"{found}onnxruntime-gpu is built for {built}: use another GPU, or a model for CPUs"
        )
    return gpu


def check_libraries(load: Callable[[str], object] = ctypes.CDLL) -> None:
    """Load what the provider is linked with.

    Raises:
        StartupError: one of them does not load.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    for name, package in LIBRARIES.items():
        try:
            load(name)
        except OSError as error:
            raise StartupError(
                f"{name} does not load ({error}): {INSTALL}, which brings it in {package}"
            ) from error


def require_gpu(index: int, find: Find = find_driver) -> Gpu:
    """The GPU ``index``, after all that a model needs to run on it was found.

    Raises:
        StartupError: something is missing or too old; the message says what to install or to change.
    """
    check_build()
    # The provider warns of things that nobody can change.
    ort.set_default_logger_severity(_ERRORS)
    driver = find()
    check_driver(driver)
    gpu = check_gpu(driver, index)
    check_libraries()
    return gpu


def session_providers(device: Device, options: Mapping[str, str]) -> list[Any]:
    """The argument ``providers`` of a session on ``device``; ``options`` go to the CUDA provider."""
    if device.kind == "cpu":
        return [CPU_PROVIDER]
    # Tokens were doubled on an H200 with cuDNN's attention. Read when the provider is made.
    os.environ.setdefault("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0")
    return [
        (PROVIDER, {"device_id": str(device.index), **_OPTIONS, **options}),
        CPU_PROVIDER,
    ]


def check_providers(device: Device, found: list[str]) -> None:
    """Raises StartupError where a session for a GPU has come to compute on the CPU."""
    if device.kind == "cuda" and PROVIDER not in found:
        raise StartupError(
            f"ONNX Runtime did not load its CUDA provider for {device}: `llm-grpc doctor` says what is "
            "missing"
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
