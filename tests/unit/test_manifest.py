"""The manifest: what is not exactly right is refused with one line, and nothing else ever comes out."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_grpc.errors import ManifestError
from llm_grpc.manifest import (
    MANIFEST,
    VERIFICATION,
    check_digests,
    load_manifest,
    manifest_digest,
)
from tests.rpc.models import write_model_dir


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model_dir(tmp_path / "model")


def change(model_dir: Path, **fields: Any) -> None:
    path = model_dir / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_written_manifest_loads(model_dir: Path) -> None:
    assert load_manifest(model_dir).name == "scripted"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": 1}, "has format 1, and this version reads format 2"),
        ({"format": "1"}, "format"),
        ({"lowering": "pages"}, "lowering"),
        ({"lowering": "paged"}, "the lowering is paged and block_size is None"),
        ({"block_size": 16}, "the lowering is slots and block_size is 16"),
        ({"lowering": "paged", "block_size": 8}, "block_size"),
        ({"lowering": "paged", "block_size": 48}, "48 is not a power of two"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../etc"}, "name"),
        ({"graph": "other.onnx"}, "other.onnx is not among files"),
        ({"chat_template": "chat.jinja"}, "chat.jinja is not among files"),
        ({"tool_chat_template": "tools.jinja"}, "tools.jinja is not among files"),
        ({"special_tokens": {"bos_token": 3}}, "special_tokens"),
        ({"stages": ["model.onnx", "other.onnx"]}, "other.onnx is not among files"),
        ({"stages": ["model.onnx"]}, "stages must be model.onnx and others, each once, or nothing"),
        ({"stages": ["tokenizer.json", "model.onnx"]}, "stages must be model.onnx and others"),
        ({"stages": ["model.onnx", "tokenizer.json", "model.onnx"]}, "stages must be"),
        ({"stages": [1, 2]}, "stages"),
        ({"stage_layers": [1]}, "stage_layers must divide"),
        ({"stages": ["model.onnx", "tokenizer.json"], "stage_layers": [1, 99]}, "layers in 2"),
        ({"source": "/home/someone/model"}, "source"),
        ({"verification": "yes"}, "verification"),
        ({"eos_token_ids": []}, "eos_token_ids"),
        ({"eos_token_ids": [257]}, "257 is not in the vocabulary of 257"),
        ({"context_tokens": 2**40}, "context_tokens"),
        ({"files": {"../../secret": {"size_bytes": 1, "sha256": "0" * 64}}}, "is damaged"),
    ],
)
def test_a_wrong_field_is_named(model_dir: Path, fields: dict[str, Any], says: str) -> None:
    change(model_dir, **fields)
    with pytest.raises(ManifestError) as error:
        load_manifest(model_dir)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_and_a_truncated_file_are_named(model_dir: Path) -> None:
    graph = model_dir / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"model\.onnx has \d+ bytes, and the manifest says \d+"):
        load_manifest(model_dir)
    graph.unlink()
    with pytest.raises(ManifestError, match=r"model\.onnx is listed in the manifest and cannot be read"):
        load_manifest(model_dir)


def test_the_digest_changes_with_any_file_entry(model_dir: Path) -> None:
    before = manifest_digest(model_dir)
    files = load_manifest(model_dir).model_dump(mode="json")["files"]
    files["model.onnx"]["sha256"] = "0" * 64
    change(model_dir, files=files)
    assert manifest_digest(model_dir) != before


def test_a_flipped_byte_is_found_by_its_digest(model_dir: Path) -> None:
    manifest = load_manifest(model_dir)
    check_digests(model_dir, manifest)
    graph = model_dir / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert load_manifest(model_dir) == manifest, "its size is the same"
    with pytest.raises(ManifestError, match=r"model\.onnx has SHA-256 [0-9a-f]{64}, and the manifest says"):
        check_digests(model_dir, manifest)


def test_the_digest_of_a_verification_counts_where_there_is_one(model_dir: Path) -> None:
    change(model_dir, verification="0" * 64)
    with pytest.raises(ManifestError, match=r"cannot read .*verification\.json: No such file"):
        check_digests(model_dir, load_manifest(model_dir))
    (model_dir / VERIFICATION).write_text("{}")
    with pytest.raises(ManifestError, match=r"verification\.json has SHA-256"):
        check_digests(model_dir, load_manifest(model_dir))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_bytes_load_or_are_refused(model_dir: Path, data: st.DataObject) -> None:
    path = model_dir / MANIFEST
    text = path.read_bytes()
    at = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(at, min(len(text), at + 8)))
    path.write_bytes(text[:at] + data.draw(st.binary(max_size=8)) + text[end:])
    with suppress(ManifestError):
        load_manifest(model_dir)
    path.write_bytes(text)


def test_what_came_later_has_defaults(model_dir: Path) -> None:
    fields = json.loads((model_dir / MANIFEST).read_text())
    for later in ("special_tokens", "tool_chat_template"):
        del fields[later]
    (model_dir / MANIFEST).write_text(json.dumps(fields))
    manifest = load_manifest(model_dir)
    assert (manifest.special_tokens, manifest.tool_chat_template) == ({}, None)
