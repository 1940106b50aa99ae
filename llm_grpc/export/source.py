"""The Hugging Face directory that an export or a verification reads."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from llm_grpc.errors import ExportError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_WHOLE = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64"})
"""Types of masks and counters that some checkpoints carry; they are no weights."""


@dataclass(frozen=True)
class Source:
    """A directory with a checkpoint, and how large its weights are. ``name`` says where it came from."""

    name: str
    directory: Path
    num_parameters: int
    vocabulary_parameters: int

    @property
    def recorded_name(self) -> str:
        """What a manifest may say of it: a hub id or the directory's own name, never a path."""
        name = self.name if not Path(self.name).is_dir() else self.directory.resolve().name
        return name if _HUB_ID.fullmatch(name) else ""


def find_source(source: str) -> Source:
    """The directory ``source``, or the hub repository of that id, downloaded unless it is cached.

    Only the headers of its safetensors files are read.

    Raises:
        ExportError: it is absent, gated, not complete, not safetensors, or quantised; the message says which.
    """
    directory = Path(source) if Path(source).is_dir() else _download(source)
    _check_config(source, directory)
    shapes = [shape for path in _weights(source, directory) for shape in _header(source, path)]
    sizes = [math.prod(shape) for shape in shapes]
    matrices = [size for size, shape in zip(sizes, shapes, strict=True) if len(shape) == 2]
    return Source(source, directory, sum(sizes), max(matrices, default=0))


def weight_files(source: Source) -> list[Path]:
    """The safetensors files of a source, each once.

    Raises:
        ExportError: one is not there.
    """
    return _weights(source.name, source.directory)


def _download(source: str) -> Path:
    if not _HUB_ID.fullmatch(source):
        raise ExportError(f"cannot load {source}: there is no such directory")
    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except Exception as error:
        raise ExportError(f"cannot load {source}: {hub_fault(error)}") from error


def hub_fault(error: Exception) -> str:
    """Why a download failed, in a few words."""
    if isinstance(error, GatedRepoError):
        return "it is gated on the hub: ask for access there, and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such directory, and no such repository on the hub that you may read"
    if isinstance(error, LocalEntryNotFoundError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub does not answer"
        return f"there is no such directory, it is not in the hub's cache, and {why}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_config(source: str, directory: Path) -> None:
    config = _read_json(source, directory / "config.json")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ExportError(
            f"cannot load {source}: its weights are quantised ({method}); take the original model"
        )


def _read_json(source: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ExportError(f"cannot load {source}: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot load {source}: {path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ExportError(f"cannot load {source}: {path.name} holds no JSON object")
    return found


def _weights(source: str, directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists() and not (directory / names[0]).exists():
        names = sorted({str(name) for name in _read_json(source, index).get("weight_map", {}).values()})
    for name in names:
        if not (directory / name).is_file():
            raise ExportError(
                f"cannot load {source}: it has no {name}; weights are read from safetensors only"
            )
    return [directory / name for name in names]


def _header(source: str, path: Path) -> list[list[int]]:
    """Shapes of the floating-point tensors of one file."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            found = [(name, part.get_dtype(), part.get_shape()) for name, part in slices.items()]
    except (OSError, SafetensorError) as error:
        raise ExportError(f"cannot load {source}: {path.name} is damaged: {first_line(error)}") from error
    for name, dtype, _ in found:
        if dtype not in _DTYPES | _WHOLE:
            known = ", ".join(sorted(_DTYPES))
            raise ExportError(f"cannot load {source}: {name} has dtype {dtype}; these are exported: {known}")
    return [shape for _, dtype, shape in found if dtype in _DTYPES]
