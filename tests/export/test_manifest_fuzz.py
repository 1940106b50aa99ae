"""A manifest with any values changed is refused, or describes what the graph is: nothing else ever loads."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_grpc.errors import ManifestError
from llm_grpc.export.verify_drive import prefill
from llm_grpc.manifest import MANIFEST, Manifest, load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.text.tokenizer import TextTokenizer

Place = tuple[str | int, ...]

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**30]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["model.onnx", "tokenizer.json", "manifest.json", ".", "..", "", "a\0b", "x" * 300]),
    st.sampled_from(["float32", "int8", "float16"]),
    st.lists(st.integers(-1, 300), max_size=3),
    st.just({}),
)


@pytest.fixture(scope="module")
def directory(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("fuzzed") / "model"))


@pytest.fixture(scope="module")
def original(model_dir: Path) -> Manifest:
    return load_manifest(model_dir)


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place in a JSON value, the whole left out."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*at, key))


def get(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def mutate(data: st.DataObject, manifest: dict[str, Any]) -> dict[str, Any]:
    """One to three changes: a value replaced, moved by one, swapped with another, renamed or left out."""
    changed = copy.deepcopy(manifest)
    for _ in range(data.draw(st.integers(1, 3))):
        all_places = list(places(changed))
        if not all_places:
            break
        *parents, key = data.draw(st.sampled_from(all_places))
        parent, value = get(changed, tuple(parents)), get(changed, (*parents, key))
        match data.draw(st.sampled_from(["replace", "move", "swap", "rename", "leave out"])):
            case "move" if type(value) is int:
                parent[key] = value + data.draw(st.sampled_from([-1, 1, value]))
            case "swap":
                *others, other = data.draw(st.sampled_from(all_places))
                parent[key] = copy.deepcopy(get(changed, (*others, other)))
            case "rename" if isinstance(parent, dict):
                parent[data.draw(st.text(max_size=8))] = parent.pop(key)
            case "leave out":
                del parent[key]
            case _:
                parent[key] = data.draw(VALUES)
    return changed


def load(directory: Path) -> tuple[Manifest, SlotRunner]:
    """What a server does before it says SERVING."""
    manifest = load_manifest(directory)
    TextTokenizer(directory / manifest.tokenizer, manifest.context_tokens - 1).check_ids(
        manifest.vocabulary_size
    )
    return manifest, SlotRunner(directory, manifest, 1, manifest.context_tokens, threads=1)


def start(directory: Path, changed: dict[str, Any], original: Manifest) -> None:
    (directory / MANIFEST).write_text(json.dumps(changed))
    try:
        manifest, runner = load(directory)
    except ManifestError:
        return
    assert manifest.vocabulary_size == original.vocabulary_size
    assert manifest.kv_cache == original.kv_cache
    assert manifest.context_tokens <= original.context_tokens
    assert prefill(runner, [1]).shape == (1, original.vocabulary_size)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_manifest(directory: Path, original: Manifest, data: st.DataObject) -> None:
    start(directory, mutate(data, original.model_dump(mode="json")), original)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary_size": 258},
        {"vocabulary_size": 256, "eos_token_ids": [1]},
        {"context_tokens": 129},
        {"context_tokens": 2**31 - 1},
        {"kv_cache": {"num_layers": 2**31 - 1, "num_heads": 2, "head_dim": 16, "dtype": "float32"}},
        {"kv_cache": {"num_layers": 3, "num_heads": 16, "head_dim": 2, "dtype": "float32"}},
        {"kv_cache": {"num_layers": 3, "num_heads": 2, "head_dim": 16, "dtype": "int8"}},
        {"tokenizer": "model.onnx"},
        {"graph": "tokenizer.json"},
        {"chat_template": "absent.jinja"},
        {"eos_token_ids": [-1]},
        {"files": {"": {"size_bytes": 0, "sha256": "0" * 64}}},
    ],
)
def test_what_the_graph_is_not_is_refused(
    directory: Path, original: Manifest, changes: dict[str, Any]
) -> None:
    (directory / MANIFEST).write_text(json.dumps({**original.model_dump(mode="json"), **changes}))
    with pytest.raises(ManifestError):
        load(directory)
