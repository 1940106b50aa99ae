"""Writing a file of a model directory in one step."""

from __future__ import annotations

import os
from pathlib import Path

from llm_grpc.manifest import MANIFEST, Manifest


def write_manifest(model_dir: Path, manifest: Manifest) -> None:
    """Write the manifest, or replace it in one step."""
    write_atomically(model_dir / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it over ``path``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
