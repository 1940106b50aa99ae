"""A source that cannot be exported is refused with one line that says why, before weights are loaded."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_grpc.errors import ExportError
from llm_grpc.export.command import export
from llm_grpc.export.source import find_source
from llm_grpc.machine import free_disk_bytes
from llm_grpc.manifest import load_manifest

Damage = Callable[[Path], object]
WEIGHTS = "model.safetensors"


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "source"))


def config(**changes: Any) -> Damage:
    def damage(source: Path) -> None:
        path = source / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def without(part: str) -> Damage:
    """Leave out the weights whose names contain ``part``."""

    def damage(source: Path) -> None:
        kept = {name: value for name, value in load_file(source / WEIGHTS).items() if part not in name}
        save_file(kept, source / WEIGHTS, {"format": "pt"})

    return damage


def header(source: Path, tensors: dict[str, Any], data_bytes: int) -> None:
    """Write a file of nothing but zeros, which takes no room on the disk."""
    text = json.dumps(tensors).encode()
    with (source / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + data_bytes)


def one_tensor(dtype: str, shape: list[int], data_bytes: int) -> Damage:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, data_bytes]}
    return lambda source: header(source, {"model.weight": tensor}, data_bytes)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(shutil.rmtree, "there is no such directory", id="no directory"),
        pytest.param(lambda s: (s / "config.json").unlink(), "it has no config.json", id="no config"),
        pytest.param(
            lambda s: (s / "config.json").write_text("{"), "config.json cannot be read", id="bad config"
        ),
        pytest.param(config(model_type="surprise"), "surprise", id="unknown architecture"),
        pytest.param(config(quantization_config={"quant_method": "x"}), "quantised (x)", id="quantised"),
        pytest.param(lambda s: (s / WEIGHTS).unlink(), "it has no model.safetensors", id="no weights"),
        pytest.param(
            lambda s: os.truncate(s / WEIGHTS, (s / WEIGHTS).stat().st_size - 1),
            "is damaged",
            id="weights cut",
        ),
        pytest.param(one_tensor("F8_E4M3", [8], 8), "model.weight has dtype F8_E4M3", id="dtype"),
        pytest.param(without("layers.1.mlp.up"), "lacks 1 weights, model.layers.1.", id="a missing weight"),
        pytest.param(lambda s: (s / "tokenizer.json").unlink(), "tokenizer", id="no tokenizer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(source: Path, tmp_path: Path, damage: Damage, says: str) -> None:
    damage(source)
    with pytest.raises(ExportError) as error:
        export(str(source), tmp_path / "out" / "model")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


def test_sizes_come_from_the_headers(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    found = find_source(str(checkpoint))
    assert found.num_parameters == sum(tensor.size for tensor in tensors.values())
    assert found.vocabulary_parameters == 257 * 64
    assert found.recorded_name == "random-llama"


def test_weights_in_several_files_are_counted_together(source: Path) -> None:
    tensors = load_file(source / WEIGHTS)
    (source / WEIGHTS).unlink()
    index = {}
    for number, name in enumerate(tensors):
        file = f"model-{number % 2}.safetensors"
        index[name] = file
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert find_source(str(source)).num_parameters == sum(np.prod(t.shape) for t in tensors.values())


def test_a_model_too_large_for_the_disk_is_refused_before_it_is_loaded(source: Path, tmp_path: Path) -> None:
    size = free_disk_bytes(tmp_path) // 4096 * 4096
    one_tensor("BF16", [1024, size // 2048], size)(source)
    with pytest.raises(ExportError, match=r"needs .* of disk while it is exported, and .* are free"):
        export(str(source), tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a b", ".hidden", "x" * 101])
def test_a_name_that_requests_cannot_use(checkpoint: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="pass another one as --name"):
        export(str(checkpoint), tmp_path / "model", name)


REFUSALS = {"gated": (403, "GatedRepo"), "absent": (401, "RepoNotFound")}


class _Hub(BaseHTTPRequestHandler):
    """A hub that refuses everything; the repository's name says how."""

    def do_GET(self) -> None:
        code, reason = next((v for name, v in REFUSALS.items() if name in self.path), (404, "EntryNotFound"))
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "offline", "says"),
    [
        ("owner/gated", "0", "it is gated on the hub"),
        ("owner/absent", "0", "no such repository on the hub"),
        ("owner/model", "1", "it is not in the hub's cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_hub_id_that_cannot_be_had(hub: str, tmp_path: Path, name: str, offline: str, says: str) -> None:
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "llm_grpc.cli.main", "export", name, str(tmp_path / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, env=env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"llm-grpc: cannot load {name}: ")
    assert says in line
    assert not (tmp_path / "out").exists()


def cached(checkpoint: Path, home: Path, owner: str, name: str) -> None:
    """Put a checkpoint where the hub's client keeps what it has downloaded."""
    repository = home / "hub" / f"models--{owner}--{name}"
    shutil.copytree(checkpoint, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def test_a_hub_id_in_the_cache_needs_no_network_and_is_remembered(checkpoint: Path, tmp_path: Path) -> None:
    cached(checkpoint, tmp_path / "hub", "owner", "model")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    directory = tmp_path / "model"
    for arguments in (["export", "owner/model", str(directory)], ["verify", str(directory)]):
        command = [sys.executable, "-m", "llm_grpc.cli.main", *arguments, "--tokens=2"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, env=env)
        assert done.returncode == 0, done.stderr
    manifest = load_manifest(directory)
    assert (manifest.source, manifest.name) == ("owner/model", "model")
