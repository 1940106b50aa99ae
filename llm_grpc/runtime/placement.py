"""Which devices a model runs on."""

from __future__ import annotations

from llm_grpc.devices import CPU, Device, parse_devices
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.cuda import Find, require_gpu
from llm_grpc.runtime.gpus import find_driver
from llm_grpc.runtime.staged_session import check_devices


def place(asked: str, manifest: Manifest, find: Find = find_driver) -> tuple[Device, ...]:
    """The devices that ``asked`` (``auto``, ``cpu``, ``cuda``, ``cuda:N``, several) means for a model.

    They are one for all of it, or as many as its stages.

    A model of lowering ``paged`` runs on GPUs, one of lowering ``slots`` on CPUs; ``auto`` is the one that
    there are kernels for.

    Raises:
        ManifestError: the model does not run on such a device.
        StartupError: there are not as many devices as stages, or a GPU cannot be used; it says why.
    """
    devices = parse_devices(asked)
    devices = devices or (Device("cuda") if manifest.lowering == "paged" else CPU,)
    for device in devices:
        _check_model(device, manifest)
    check_devices(devices, manifest)
    for device in devices:
        if device.kind == "cuda":
            require_gpu(device.index, find)
    return devices


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
