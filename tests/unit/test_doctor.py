"""What `llm-grpc doctor` finds, and when it says that something is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from llm_grpc.cli import self_test
from llm_grpc.cli.main import main
from llm_grpc.cli.self_test import answer, known_answer, multiply
from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.devices import CPU, Device
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime import cuda, gpus
from llm_grpc.runtime.gpus import Driver, Version
from llm_grpc.runtime.placement import place
from llm_grpc.runtime.probe import GRAPH
from llm_grpc.text.tokenizer import TextTokenizer
from tests.unit.fake_nvml import H200, driver


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


def set_driver(monkeypatch: pytest.MonkeyPatch, found: Driver, built_for_gpus: bool = True) -> None:
    """A machine with a driver, whose onnxruntime still is this environment's."""
    monkeypatch.setattr(gpus, "find_driver", lambda: found)
    for asking in (cuda.require_gpu, place):
        monkeypatch.setattr(asking, "__defaults__", (lambda: found,))
    if built_for_gpus:
        monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.PROVIDER, "CPUExecutionProvider"])
        monkeypatch.setattr(cuda, "check_libraries", lambda: None)


def test_a_healthy_machine_without_a_gpu(printed: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = printed.readouterr().out
    assert "\nonnxruntime          onnxruntime 1." in out
    assert "cpu product  passed" in out
    assert "cpu model    passed  embedded: 25 tokens in " in out
    assert "\nno GPU " in out


def test_json(printed: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    found = json.loads(printed.readouterr().out)
    assert found["healthy"] is True
    assert [(o["device"], o["test"], o["passed"]) for o in found["outcomes"]] == [
        ("cpu", "product", True),
        ("cpu", "model", True),
    ]
    assert "CPUExecutionProvider" in found["providers"]


def test_a_gpu_that_was_asked_for_and_cannot_be_used(printed: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cuda:1"]) == 1
    out = printed.readouterr().out
    assert "cuda:1 usable  FAILED  onnxruntime 1." in out
    assert "is a build for CPUs: pip uninstall" in out


def test_gpus_are_listed_though_this_build_cannot_use_them(
    monkeypatch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]
) -> None:
    set_driver(monkeypatch, driver(H200), built_for_gpus=False)
    assert main(["doctor"]) == 0
    out = printed.readouterr().out
    assert "NVIDIA H200, compute capability 9.0, 138.0 GiB of 139.0 GiB free" in out
    assert "cuda:0 usable  not run onnxruntime 1." in out


def test_a_build_for_gpus_whose_driver_is_too_old_is_not_healthy(
    monkeypatch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]
) -> None:
    set_driver(monkeypatch, driver(H200, version="550.54.14", cuda=Version(12, 4)))
    assert main(["doctor"]) == 1
    out = printed.readouterr().out
    assert "cuda:0 usable  FAILED  the NVIDIA driver is 550.54.14" in out
    assert "cpu model      passed" in out


def test_a_provider_that_does_not_load_is_not_healthy(
    monkeypatch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]
) -> None:
    """The driver and the GPU are fine, and the session falls back, as this environment's always does."""
    set_driver(monkeypatch, driver(H200))
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        assert main(["doctor", "--device", "cuda"]) == 1
    out = printed.readouterr().out
    assert "cuda:0 product  FAILED  ONNX Runtime did not load" in out
    assert re.search(r"(?m)^cuda:0 model    FAILED  .*PagedAttention", out), "the one for GPUs was tried"


@pytest.mark.parametrize("wording", ["gpu", "cuda:x"])
def test_a_wrong_device_is_a_usage_error(wording: str, printed: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", wording]) == 2
    assert f"'{wording}' is no device: say auto, cpu, cuda or cuda:N" in printed.readouterr().err


def test_the_known_answer_is_that_of_a_prompt_of_the_demo() -> None:
    prompt, tokens = known_answer()
    manifest = load_manifest(EMBEDDED_MODEL)
    tokenizer = TextTokenizer(EMBEDDED_MODEL / manifest.tokenizer, manifest.context_tokens - 1)
    demo = json.loads(Path(self_test.__file__).with_name("demo.json").read_text())
    text = tokenizer.raw.decode(prompt)
    assert text.strip() == demo[0]["prompt"]
    assert tokenizer.raw.decode(tokens).strip() == "Le professeur regarde le jardin vert chaque jour."
    assert tokens[-1] in manifest.eos_token_ids


def test_another_answer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, tokens = known_answer()
    monkeypatch.setattr(self_test, "known_answer", lambda: (prompt, [*tokens[:-1], tokens[-1] + 1]))
    found = answer(CPU, EMBEDDED_MODEL)
    assert found.passed is False
    assert found.detail.startswith("embedded answers [")


def test_another_model_has_to_repeat_its_answer(tmp_path: Path) -> None:
    model = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))
    assert answer(CPU, model).passed is True


def test_a_model_that_does_not_load_fails(tmp_path: Path) -> None:
    found = answer(CPU, tmp_path)
    assert (found.passed, found.detail.partition(":")[0]) == (False, f"{tmp_path} is not a model directory")
    assert multiply(CPU).passed is True
    assert answer(Device("cuda"), EMBEDDED_MODEL).passed is False


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.5])
def test_a_wrong_product_fails(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    monkeypatch.setattr(self_test, "product_error", lambda device: error)
    assert multiply(CPU).passed is False


def test_the_probe_is_a_product_in_float16() -> None:
    half = TensorProto.FLOAT16
    a, b, y = (
        helper.make_tensor_value_info(name, half, shape)
        for name, shape in (
            ("a", ["rows", "depth"]),
            ("b", ["depth", "columns"]),
            ("y", ["rows", "columns"]),
        )
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "probe", [a, b], [y])
    assert onnx.load(GRAPH).graph == graph
