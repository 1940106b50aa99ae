"""`llm-grpc model inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_grpc.cli.main import main
from llm_grpc.machine import total_memory_bytes
from llm_grpc.manifest import manifest_digest
from tests.rpc.models import write_model_dir


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model_dir(tmp_path / "model")


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["model", "inspect", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_page_names_shapes_sizes_and_slots(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = inspect(capsys, str(model_dir), "--memory", "1MiB")
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert "name scripted" in lines
    assert "stages 1" in lines
    assert "cache 1 layers x 1 heads x 8, float32" in lines
    assert "cache per token 64 B" in lines
    assert "model.onnx 42 B" in lines
    assert "slots that fit into 1.0 MiB beside the weights" in lines
    # 1 MiB less 42 bytes, over 64 tokens of 64 bytes, less the scratch slot.
    assert "64 tokens 254" in lines


def test_the_same_as_json(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(inspect(capsys, str(model_dir), "--memory=1MiB", "--json"))
    assert found["digest"] == manifest_digest(model_dir)
    assert found["manifest"] == json.loads((model_dir / "manifest.json").read_text())
    assert (found["kv_bytes_per_token"], found["weights_bytes"]) == (64, 42)
    assert found["memory_bytes"] == 2**20
    assert found["slots"] == {"64": 254}


def test_without_a_size_it_is_this_machine(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(inspect(capsys, str(model_dir), "--json"))
    assert found["memory_bytes"] == total_memory_bytes()


def test_no_memory_holds_no_slot(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(inspect(capsys, str(model_dir), "--json", "--memory=1"))["slots"] == {"64": 0}


def test_a_directory_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(tmp_path)]) == 1
    assert "is not a model directory" in capsys.readouterr().err


def test_a_size_that_is_none(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(model_dir), "--memory=much"]) == 2
    assert "'much' is not a size such as 8GiB" in capsys.readouterr().err


def test_variables_of_the_server_do_not_disturb(
    model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_GRPC_MODEL", "elsewhere")
    monkeypatch.setenv("LLM_GRPC_MODEL_NAME", "other")
    assert "scripted" in inspect(capsys, str(model_dir))


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", "--help"]) == 0
    assert "Exit codes: 0 " in capsys.readouterr().out
