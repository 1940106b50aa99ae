"""The manifest of an adapter directory, as written by ``llm-grpc export-adapter``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from llm_grpc.adapter_room import MAX_ADAPTER_RANK
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import FileEntry, file_entry

ADAPTER, ADAPTER_WEIGHTS = "adapter.json", "adapter.npz"
ADAPTER_FORMAT: Final = 1
"""Version of both files. A change that older code would misread raises it."""


class AdapterManifest(BaseModel, frozen=True, extra="forbid", strict=True):
    """What an adapter directory holds.

    ``weights`` describes ``adapter.npz``: for each of ``modules`` the float32 arrays ``<module>.down``
    ``[rows, r]`` and ``<module>.up`` ``[r, columns]``, whose product is added to the module's weights; all
    scales are in them already. ``rank`` is the largest r. ``base`` identifies the model as
    ``AdapterRoom.base`` does, and ``source`` is the name of the directory that it was made from.
    """

    format: Literal[1]
    rank: Annotated[int, Field(ge=1, le=MAX_ADAPTER_RANK)]
    base: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    modules: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    weights: FileEntry
    source: str = ""


def load_adapter_manifest(directory: Path) -> AdapterManifest:
    """Read and check the manifest of ``directory``, and its weights' SHA-256.

    Raises:
        ManifestError: the directory or a file is missing, damaged or of another version.
    """
    path = directory / ADAPTER
    try:
        manifest = AdapterManifest.model_validate_json(path.read_bytes())
        found = file_entry(directory / ADAPTER_WEIGHTS)
    except OSError as error:
        raise ManifestError(
            f"{directory} is not an adapter directory: cannot read {error.filename}: {error.strerror}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ManifestError(f"{path} is damaged: {where}: {first['msg']}") from None
    if found != manifest.weights:
        raise ManifestError(
            f"{directory / ADAPTER_WEIGHTS} has {found.size_bytes} bytes and SHA-256 {found.sha256}, and the "
            f"manifest says {manifest.weights.size_bytes} and {manifest.weights.sha256}: export it again"
        )
    return manifest


def adapter_digest(directory: Path) -> str:
    """``sha256:`` and the digest of the manifest's bytes, which hold the digest of the weights."""
    return "sha256:" + hashlib.sha256((directory / ADAPTER).read_bytes()).hexdigest()
