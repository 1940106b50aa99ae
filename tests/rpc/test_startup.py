"""A server that cannot start says why in one line on stderr, and ends."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.process import HANG_S, ServerProcess

FREE_PORTS = {f"LLM_GRPC_{name}ADDRESS": "127.0.0.1:0" for name in ("", "METRICS_", "ADMIN_")}

LOG_LINE = re.compile(r"\S+ \S+ INFO llm_grpc\.")

Damage = Callable[[Path], object]


@pytest.fixture
def model(scripted_model: Path, tmp_path: Path) -> Path:
    """A model directory to damage. Its graph is garbage of the size that the manifest says."""
    return Path(shutil.copytree(scripted_model, tmp_path / "model"))


def refusal(*flags: str, code: int = 1) -> str:
    """Start a server that must not start; returns its last line, the only one that is no log line."""
    command = [sys.executable, "-m", "llm_grpc.cli.main", "serve", *flags]
    env = {**os.environ, **FREE_PORTS}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S, env=env)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    *before, last = done.stderr.splitlines()
    assert last.startswith("llm-grpc: ")
    assert not [line for line in before if not LOG_LINE.match(line)]
    return last


def manifest(**changes: Any) -> Damage:
    """Change keys of the manifest, or add them."""

    def damage(model: Path) -> None:
        path = model / "manifest.json"
        found = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps(found))

    return damage


def cut(name: str) -> Damage:
    """Cut the end of a file off."""
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:-20])


def garble(name: str) -> Damage:
    """Keep a file's size and nothing else."""
    return lambda model: (model / name).write_bytes(b"\xff" * (model / name).stat().st_size)


def remove(name: str) -> Damage:
    return lambda model: (model / name).unlink()


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        pytest.param(shutil.rmtree, "manifest.json: No such file", id="no directory"),
        pytest.param(remove("manifest.json"), "manifest.json: No such file", id="no manifest"),
        pytest.param(cut("manifest.json"), "manifest.json is damaged", id="manifest cut"),
        pytest.param(garble("manifest.json"), "manifest.json is damaged", id="manifest is not JSON"),
        pytest.param(manifest(format=1), "has format 1, and this version reads format 2", id="older format"),
        pytest.param(manifest(colour="blue"), "is damaged: colour: ", id="unknown field"),
        pytest.param(remove("model.onnx"), "model.onnx is listed in the manifest", id="no graph"),
        pytest.param(cut("model.onnx"), "bytes, and the manifest says", id="graph cut"),
        pytest.param(garble("model.onnx"), "cannot load the graph", id="graph garbled"),
        pytest.param(garble("tokenizer.json"), "cannot read the tokenizer", id="tokenizer garbled"),
    ],
)
def test_a_damaged_model_directory(model: Path, damage: Damage, cause: str) -> None:
    damage(model)
    line = refusal(f"--model={model}")
    assert cause in line
    assert str(model) in line


@pytest.mark.parametrize(
    ("flag", "code", "cause"),
    [
        ("--address=localhost", 1, "'localhost' is not HOST:PORT"),
        ("--address=127.0.0.1:70000", 1, "'127.0.0.1:70000' is not HOST:PORT"),
        ("--admin-address=:http", 1, "':http' is not HOST:PORT"),
        ("--address=192.0.2.1:0", 1, f"cannot listen on 192.0.2.1:0: {os.strerror(errno.EADDRNOTAVAIL)}"),
        ("--max-context-tokens=65", 1, "max_context_tokens is 65"),
        ("--max-running=0", 2, "--max-running: the value"),
    ],
)
def test_a_wrong_setting(scripted_model: Path, flag: str, code: int, cause: str) -> None:
    assert cause in refusal(f"--model={scripted_model}", flag, code=code)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_flipped_byte_is_refused_where_digests_are_verified(model: Path, name: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[-1] ^= 1
    (model / name).write_bytes(content)
    line = refusal(f"--model={model}", "--verify-digest")
    assert f"{model / name} has SHA-256 " in line


def test_a_model_whose_digests_are_right_serves() -> None:
    with ServerProcess("--verify-digest"):
        pass


def test_a_tokenizer_of_another_model(model: Path) -> None:
    damage = manifest(vocabulary_size=256, eos_token_ids=[0])
    damage(model)
    assert "the tokenizer has ids up to 256, and the model a vocabulary of 256" in refusal(f"--model={model}")


@pytest.mark.parametrize("plane", ["address", "metrics-address", "admin-address"])
def test_an_address_that_is_taken(embedded: ServerProcess, scripted_model: Path, plane: str) -> None:
    taken = getattr(embedded, plane.replace("-", "_"))
    line = refusal(f"--model={scripted_model}", f"--{plane}={taken}")
    assert f"cannot listen on {taken}" in line
    assert os.strerror(errno.EADDRINUSE) in line
