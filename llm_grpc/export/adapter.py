"""From a LoRA adapter in PEFT's format to an adapter directory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm_grpc.adapter_manifest import ADAPTER, ADAPTER_FORMAT, ADAPTER_WEIGHTS, AdapterManifest
from llm_grpc.adapter_room import AdapterRoom
from llm_grpc.errors import ExportError
from llm_grpc.export.peft_config import PeftConfig, read_config
from llm_grpc.export.replace import replace_directory
from llm_grpc.manifest import file_entry, load_manifest

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"

Floats = NDArray[np.float32]


def export_adapter(source: Path, adapter_dir: Path, model_dir: Path) -> AdapterManifest:
    """Write the adapter of the PEFT directory ``source`` for the model of ``model_dir`` to ``adapter_dir``.

    The directory is written beside its place and renamed at the end; an adapter directory that is there is
    replaced. No code of the adapter is run.

    Raises:
        ExportError: the adapter cannot be served, or not with this model; the message names what is at fault.
        ManifestError: ``model_dir`` is not a model directory.
    """
    room = load_manifest(model_dir).adapters
    if room is None:
        raise ExportError(f"{model_dir} has no room for adapters: export it with --max-adapter-rank")
    if adapter_dir.exists() and not (adapter_dir / ADAPTER).exists():  # never a model, nor a PEFT directory
        raise ExportError(f"{adapter_dir} exists and is not an adapter directory: choose another")
    config = read_config(source)
    tensors = _read(source / WEIGHTS)
    matrices = _matrices(source / WEIGHTS, tensors, config, room)
    rank = max(down.shape[1] for down, _ in matrices.values())
    if rank > room.max_rank:
        raise ExportError(f"{source} has rank {rank}, and {model_dir} has room for {room.max_rank}")
    try:
        return _write(adapter_dir, source.resolve().name, matrices, room.base)
    except OSError as error:
        raise ExportError(f"cannot write {adapter_dir}: {error.strerror}") from error


def _write(
    adapter_dir: Path, source: str, matrices: Mapping[str, tuple[Floats, Floats]], base: str
) -> AdapterManifest:
    adapter_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{adapter_dir.name}.", dir=adapter_dir.parent) as scratch:
        staging = Path(scratch) / "adapter"
        staging.mkdir()
        arrays = {f"{name}.down": down for name, (down, _) in matrices.items()}
        arrays |= {f"{name}.up": up for name, (_, up) in matrices.items()}
        np.savez(staging / ADAPTER_WEIGHTS, allow_pickle=False, **arrays)
        manifest = AdapterManifest(
            format=ADAPTER_FORMAT,
            rank=max(down.shape[1] for down, _ in matrices.values()),
            base=base,
            modules=tuple(matrices),
            weights=file_entry(staging / ADAPTER_WEIGHTS),
            source=source,
        )
        (staging / ADAPTER).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        replace_directory(adapter_dir, staging, Path(scratch) / "old")
    return manifest


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ExportError(f"there is no {path}: adapters are read from safetensors alone")
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"cannot read {path}: {error}") from error
    return tensors


def _matrices(
    path: Path, tensors: Mapping[str, torch.Tensor], config: PeftConfig, room: AdapterRoom
) -> dict[str, tuple[Floats, Floats]]:
    """For each module ``[rows, r]`` and ``[r, columns]``, the scale in the second."""
    modules = sorted({_module_of(path, name) for name in tensors})
    for target in config.targets or ():
        if not any(f".{module}".endswith(f".{target}") for module in modules):
            raise ExportError(f"{path} has no matrices of {target}, which target_modules names")
    if not modules:
        raise ExportError(f"{path} holds no matrices")
    found = {}
    for module in modules:
        if module not in room.modules:
            raise ExportError(f"{path}: {module} is no linear layer that adapters of this model can change")
        found[module] = _pair(path, module, tensors, config, room.modules[module])
    return found


def _pair(
    path: Path, module: str, tensors: Mapping[str, torch.Tensor], config: PeftConfig, sizes: tuple[int, int]
) -> tuple[Floats, Floats]:
    rank, (rows, columns) = config.rank_of(module), sizes
    down = _tensor(path, f"{_PREFIX}{module}{_A}", tensors, (rank, rows))
    up = _tensor(path, f"{_PREFIX}{module}{_B}", tensors, (columns, rank))
    with np.errstate(over="ignore"):
        scaled: Floats = (up.T.astype(np.float64) * config.scale_of(module)).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise ExportError(f"{path}: {module} is beyond fp32 with its scale of {config.scale_of(module):g}")
    return np.ascontiguousarray(down.T), np.ascontiguousarray(scaled)


def _tensor(path: Path, name: str, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> Floats:
    if name not in tensors:
        raise ExportError(f"{path} has no {name}")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise ExportError(
            f"{path}: {name} is {list(tensor.shape)}, and must be {list(shape)} for this model and rank"
        )
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        raise ExportError(f"{path}: {name} has values that are not finite numbers")
    array: Floats = tensor.float().numpy()
    return array


def _module_of(path: Path, name: str) -> str:
    for end in (_A, _B):
        if name.startswith(_PREFIX) and name.endswith(end):
            return name[len(_PREFIX) : -len(end)]
    raise ExportError(f"{path}: {name} is no matrix of a LoRA adapter of linear layers, and is not served")
