"""The manifest of a model directory: the contract between export and runtime."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_grpc.adapter_room import AdapterRoom
from llm_grpc.errors import ManifestError

MANIFEST, VERIFICATION = "manifest.json", "verification.json"
FORMAT: Final = 2
"""Version of the manifest and of the graph's interface. A change that older code would misread raises it."""

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

_CACHES = {"fp16": "float16", "bf16": "bfloat16"}
"""Types of the cache, by weights that settle it."""

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Strict):
    """One file of the directory: its size in bytes and the SHA-256 of its content in hexadecimal."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: _Sha256


class KvCache(_Strict):
    """The key-value cache: a key and a value tensor for each layer, ``[slots, heads, tokens, head_dim]`` of
    lowering ``slots`` and ``[blocks, block_size, heads, head_dim]`` of lowering ``paged``.

    int8 is a code: the graph holds the scale of each head's channels.
    """

    num_layers: _Count
    num_heads: _Count
    head_dim: _Count
    dtype: Literal["float32", "float16", "bfloat16", "int8"]

    @property
    def token_bytes(self) -> int:
        """Key and value of one token in every layer."""
        return self.num_layers * 2 * self.num_heads * self.head_dim * _ITEM_BYTES[self.dtype]


class Manifest(_Strict):
    """What a model directory holds. ``graph``, ``tokenizer`` and ``files`` are names inside the directory.

    ``stages`` are the graphs of a model whose layers are cut into several, in their order, and ``graph`` is
    the first of them; empty where ``graph`` is the whole model. Each has as many layers as ``stage_layers``
    say.

    ``source`` is the hub id of what was exported, or its directory's name without the path; empty where the
    name has other characters. ``verification`` is the SHA-256 of ``verification.json``, None where there is
    none. ``block_size`` is the tokens of a block of lowering ``paged``, None of lowering ``slots``.
    ``recordable`` says that no size inside the graph depends on values: a GPU can record a step and replay
    it. ``special_tokens`` are those that chat templates know by name, bos_token and its like;
    ``tool_chat_template`` replaces ``chat_template`` where there are tools, None where one serves both.
    ``adapters`` is the room for them, None where the graph takes none. These and the stages came later than
    the rest and have defaults; a reader that does not know them refuses the file.
    """

    format: Literal[2]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    architecture: str
    lowering: Literal["slots", "paged"]
    weights: Literal["fp32", "fp16", "bf16", "int8", "int4"]
    graph: str
    tokenizer: str
    chat_template: str | None
    vocabulary_size: _Count
    context_tokens: Annotated[int, Field(ge=2, le=2**31 - 1)]
    eos_token_ids: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    kv_cache: KvCache
    files: dict[str, FileEntry]
    versions: dict[str, str]
    source: Annotated[str, Field(pattern=r"^([\w.-]+(/[\w.-]+)?)?$", max_length=200)] = ""
    verification: _Sha256 | None = None
    block_size: Annotated[int, Field(ge=16, le=4096)] | None = None
    recordable: bool = False
    stages: Annotated[tuple[str, ...], Field(strict=False)] = ()
    stage_layers: Annotated[tuple[_Count, ...], Field(strict=False)] = ()
    tool_chat_template: str | None = None
    special_tokens: dict[str, str | Annotated[tuple[str, ...], Field(strict=False)]] = {}
    adapters: AdapterRoom | None = None

    @property
    def graphs(self) -> tuple[str, ...]:
        """The graphs in the order in which they run."""
        return self.stages or (self.graph,)

    @property
    def weights_bytes(self) -> int:
        """The graphs and what lies beside them, as files."""
        return sum(map(self.stage_bytes, range(len(self.graphs))))

    def stage_bytes(self, stage: int) -> int:
        """The graph of ``stage``, from 0 on, and what lies beside it, as files."""
        graph = self.graphs[stage]
        return sum(entry.size_bytes for name, entry in self.files.items() if name.startswith(graph))

    def layers_of(self, stage: int) -> int:
        """Layers whose keys and values ``stage`` has; all where the manifest does not say."""
        return self.stage_layers[stage] if self.stage_layers else self.kv_cache.num_layers

    @model_validator(mode="after")
    def _check_stages(self) -> Manifest:
        stages = self.stages
        if stages and (len(set(stages)) < max(2, len(stages)) or stages[0] != self.graph):
            raise ValueError(f"stages must be {self.graph} and others, each once, or nothing")
        layers = self.stage_layers
        if layers and (len(layers) != len(stages) or sum(layers) != self.kv_cache.num_layers):
            raise ValueError(f"stage_layers must divide {self.kv_cache.num_layers} layers in {len(stages)}")
        return self

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        for name in (*self.graphs, self.tokenizer, self.chat_template, self.tool_chat_template):
            if name is not None and name not in self.files:
                raise ValueError(f"{name} is not among files")
        if _CACHES.get(self.weights, self.kv_cache.dtype) != self.kv_cache.dtype:
            raise ValueError(f"the weights are {self.weights} and the cache is {self.kv_cache.dtype}")
        self._check_block_size()
        for name in self.files:
            if not name or "\0" in name or Path(name).name != name:
                raise ValueError(f"the file name {name!r} leads out of the directory")
        for token in self.eos_token_ids:
            if not 0 <= token < self.vocabulary_size:
                raise ValueError(f"eos_token_ids: {token} is not in the vocabulary of {self.vocabulary_size}")
        return self

    def _check_block_size(self) -> None:
        size = self.block_size
        if (size is None) != (self.lowering == "slots"):
            raise ValueError(f"the lowering is {self.lowering} and block_size is {size}")
        if size is not None and size & (size - 1):
            raise ValueError(f"block_size: {size} is not a power of two")


def load_manifest(model_dir: Path) -> Manifest:
    """Read and check the manifest of ``model_dir`` and the presence and size of the files it lists.

    Raises:
        ManifestError: the directory, the manifest or a file is missing, damaged or of another version.
    """
    path = model_dir / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{model_dir} is not a model directory: cannot read {path}: {error.strerror}"
        ) from None
    manifest = _parse(path, text)
    for name, entry in manifest.files.items():
        _check_size(model_dir / name, entry.size_bytes)
    return manifest


def check_digests(model_dir: Path, manifest: Manifest) -> None:
    """Read every file that the manifest states a digest of. Takes about a second a gigabyte.

    Raises:
        ManifestError: a file's SHA-256 differs or it cannot be read.
    """
    expected = {name: entry.sha256 for name, entry in manifest.files.items()}
    if manifest.verification:
        expected[VERIFICATION] = manifest.verification
    for name, sha256 in expected.items():
        path = model_dir / name
        try:
            found = file_entry(path).sha256
        except OSError as error:
            raise ManifestError(f"cannot read {path}: {error.strerror}") from None
        if found != sha256:
            raise ManifestError(
                f"{path} has SHA-256 {found}, and the manifest says {sha256}: export or copy it again"
            )


def manifest_digest(model_dir: Path) -> str:
    """``sha256:`` and the digest of the manifest's bytes, which hold the digest of every other file."""
    return "sha256:" + hashlib.sha256((model_dir / MANIFEST).read_bytes()).hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Measure one file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(size_bytes=path.stat().st_size, sha256=digest)


class _Versioned(BaseModel):
    format: int


def _parse(path: Path, text: bytes) -> Manifest:
    try:
        found = _Versioned.model_validate_json(text).format
        if found != FORMAT:
            raise ManifestError(
                f"{path} has format {found}, and this version reads format {FORMAT}: export again"
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ManifestError(f"{path} is damaged: {where}: {first['msg']}") from None


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ManifestError(
            f"{path} is listed in the manifest and cannot be read: {error.strerror}"
        ) from None
    if found != expected:
        raise ManifestError(
            f"{path} has {found} bytes, and the manifest says {expected}: export or copy it again"
        )
