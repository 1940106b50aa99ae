"""Which device a model runs on."""

from __future__ import annotations

from llm_grpc.devices import CPU, Device, parse_devices
from llm_grpc.errors import ManifestError, StartupError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.cuda import Find, require_gpu
from llm_grpc.runtime.gpus import find_driver


def place(asked: str, manifest: Manifest, find: Find = find_driver) -> Device:
    """The device that ``asked`` (``auto``, ``cpu``, ``cuda``, ``cuda:N``) means for a model.

    A model of lowering ``paged`` runs on GPUs, one of lowering ``slots`` on CPUs; ``auto`` is the one that
    there are kernels for.

    Raises:
        ManifestError: the model does not run on such a device.
        StartupError: several devices, or the GPU cannot be used; the message says why.
    """
    devices = parse_devices(asked)
    if devices and len(devices) > 1:
        raise StartupError(f"device is {asked}, and a model runs on one device")
    device = devices[0] if devices else Device("cuda") if manifest.lowering == "paged" else CPU
    _check_model(device, manifest)
    if device.kind == "cuda":
        require_gpu(device.index, find)
    return device


def _check_model(device: Device, manifest: Manifest) -> None:
    """Raises ManifestError where the model has no kernels on ``device``."""
    name, dtype = manifest.name, manifest.kv_cache.dtype
    if manifest.lowering == "paged":
        if device.kind == "cpu":
            raise ManifestError(
                f"device is cpu, and {name} has lowering paged, which needs an NVIDIA GPU: serve it with "
                "--device cuda, or export it again for CPUs"
            )
    elif dtype in {"float16", "bfloat16"}:
        raise ManifestError(
            f"{name} computes in {dtype}, which needs an NVIDIA GPU, and has lowering slots, which is for "
            "CPUs: export it in fp32, or with lowering paged"
        )
    elif device.kind == "cuda":
        raise ManifestError(
            f"device is {device}, and {name} has lowering slots, which is for CPUs: serve it with --device "
            "cpu, or export it again with lowering paged"
        )
