from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from llm_grpc.machine import format_bytes, parse_bytes, total_memory_bytes
from llm_grpc.manifest import Manifest, load_manifest, manifest_digest

SHORTEST_TOKENS = 256
"""The table's first length; each next one is the double, the last is the model's context."""


def _is_size(_type: object, text: str) -> None:
    if text:
        parse_bytes(text)


def inspect(
    model_dir: Path,
    /,
    *,
    memory: Annotated[str, Parameter(validator=_is_size)] = "",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Print a model directory.

    Parameters
    ----------
    model_dir
        Directory, as written by `llm-grpc export`.
    memory
        Memory to fill with slots, such as 8GiB; empty is all that this machine or container has.
    as_json
        Print one JSON object instead.
    """
    manifest = load_manifest(model_dir)
    found = describe(manifest, parse_bytes(memory) if memory else total_memory_bytes())
    found = {"digest": manifest_digest(model_dir), **found}
    print(json.dumps(found, indent=2) if as_json else _page(found))
    return 0


def describe(manifest: Manifest, memory_bytes: int) -> dict[str, Any]:
    """The manifest, and the slots that fit beside the weights: ``slots`` maps tokens to slots.

    What the runtime needs beside weights and cache is not counted.
    """
    weights = manifest.weights_bytes
    per_token = manifest.kv_cache.token_bytes
    room = max(0, memory_bytes - weights)
    return {
        "manifest": manifest.model_dump(mode="json"),
        "weights_bytes": weights,
        "kv_bytes_per_token": per_token,
        "memory_bytes": memory_bytes,
        "slots": {length: _fitting(manifest, room, length) for length in _lengths(manifest)},
    }


def _fitting(manifest: Manifest, room: int, length: int) -> int:
    """Slots of ``length`` tokens in ``room`` bytes; a slot, or a block of lowering ``paged``, is scratch."""
    per_token, block = manifest.kv_cache.token_bytes, manifest.block_size
    if block is None:
        return max(0, room // (per_token * length) - 1)
    return max(0, room // (per_token * block) - 1) // -(-length // block)


def _lengths(manifest: Manifest) -> list[int]:
    lengths, length = [], SHORTEST_TOKENS
    while length < manifest.context_tokens:
        lengths.append(length)
        length *= 2
    return [*lengths, manifest.context_tokens]


def _page(found: dict[str, Any]) -> str:
    manifest, kv = found["manifest"], found["manifest"]["kv_cache"]
    lowering = manifest["lowering"]
    lowering += f" in blocks of {manifest['block_size']} tokens" if manifest["block_size"] else ""
    facts = {
        "name": manifest["name"],
        "source": manifest["source"] or "not recorded",
        "architecture": f"{manifest['architecture']}, {manifest['weights']} weights, {lowering}",
        "stages": str(len(manifest["stages"]) or 1),
        "vocabulary": f"{manifest['vocabulary_size']} tokens, ends with {manifest['eos_token_ids']}",
        "context": f"{manifest['context_tokens']} tokens",
        "cache": f"{kv['num_layers']} layers x {kv['num_heads']} heads x {kv['head_dim']}, {kv['dtype']}",
        "cache per token": format_bytes(found["kv_bytes_per_token"]),
        "adapters": _room(found["manifest"]["adapters"]),
        "chat template": manifest["chat_template"] or "none",
        "verified": manifest["verification"] or "no",
        "digest": found["digest"],
        "exported with": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    }
    files = [(name, format_bytes(entry["size_bytes"])) for name, entry in manifest["files"].items()]
    slots = [(f"{tokens} tokens", str(count)) for tokens, count in found["slots"].items()]
    memory = format_bytes(found["memory_bytes"])
    sections = [
        _table(list(facts.items())),
        "files\n" + _table(files, indent=2),
        f"slots that fit into {memory} beside the weights\n" + _table(slots, indent=2, right=True),
    ]
    return "\n\n".join(sections)


def _room(adapters: dict[str, Any] | None) -> str:
    if adapters is None:
        return "none"
    num_modules = sum(len(linear["parts"]) for linear in adapters["linears"])
    return f"ranks of {adapters['max_rank']} together, on {num_modules} linear layers"


def _table(rows: list[tuple[str, str]], indent: int = 0, right: bool = False) -> str:
    width = max(len(key) for key, _ in rows)
    last = max(len(value) for _, value in rows) if right else 0
    return "\n".join(f"{'':{indent}}{key:{width}}  {value:>{last}}" for key, value in rows)
