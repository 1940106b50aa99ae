"""The benchmark of GPUs runs, at toy sizes on the CPU."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import peers
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.machine import Machine, find_machine, gpu_meter
from benchmarks.gpu.results import ModelResult, SoakResult
from benchmarks.gpu.shapes import TOY
from benchmarks.gpu.skeleton import make_skeleton
from benchmarks.gpu.soak import Soaked
from benchmarks.gpu.table import page
from benchmarks.gpu.works import TOY_WORKS, WORKS, Figures
from llm_grpc.bench.entry import ModelLimits
from llm_grpc.bench.settings import WorkloadSettings
from llm_grpc.bench.shapes import shape_entries

MACHINE = Machine("NVIDIA H200", "580.95.05", "onnxruntime-gpu 1.31.1", 4.8e12, 16)


@pytest.fixture(scope="module")
def skeletons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("skeletons")
    make_skeleton(TOY, directory / "toy", {"weights": "fp32"})
    return directory


def test_all_of_it_runs(skeletons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--toy", "--out", str(tmp_path), "--soak-s", "2"]
    assert main([str(skeletons), *arguments]) == 0
    (found,) = tmp_path.glob("*.json")
    (result,) = json.loads(found.read_text())["results"]
    assert [figures["work"] for figures in result["figures"]] == [work.name for work in TOY_WORKS]
    assert all(figures["errors"] == {} for figures in result["figures"])
    assert all(figures["found"]["output_tokens_per_s"] > 0 for figures in result["figures"])
    soak = result["soak"]
    assert soak["errors"] == {}
    assert soak["finished"] > 0
    assert soak["cancelled"] > 0
    assert found.with_suffix(".md").read_text() in capsys.readouterr().out


def test_a_server_that_does_not_start_is_a_row_that_says_why(
    skeletons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(skeletons), "--device", "cuda", "--toy", "--out", str(tmp_path)]) == 1
    assert "llm-grpc did not run toy: the server did not start" in capsys.readouterr().out


@pytest.mark.slow
def test_transformers_runs_the_same_requests() -> None:
    (found,) = peers.measure(
        sys.executable, "toy", TOY_WORKS[0], device="cpu", peers=["transformers generate"]
    )
    assert found.error == ""
    assert found.figures[0].found["output_tokens_per_s"] > 0


def test_a_peer_that_is_not_installed_is_a_row_that_says_so() -> None:
    (found,) = peers.measure(sys.executable, "toy", TOY_WORKS[0], device="cpu", peers=["vllm"])
    assert found.error == "ModuleNotFoundError: No module named 'vllm'"


def test_peers_get_what_the_server_gets() -> None:
    work = WORKS[0]
    given = peers.requests("toy", work)["requests"]
    settings = WorkloadSettings(shape="uniform", prompt_tokens=work.prompt, output_tokens=work.output)
    entries = islice(shape_entries(settings, ModelLimits(300, 4096, 4095, 4095)), 256)
    assert given == [{"prompt": list(entry.prompt), "tokens": entry.output_tokens} for entry in entries]


def test_the_page_names_the_gpu_and_the_share_of_its_limit() -> None:
    figures = [
        Figures(
            "batch", "concurrency 256", {"output_tokens_per_s": 12_345.6, "total_tokens_per_s": 20_000.0}
        ),
        Figures("single", "concurrency 1", {"output_tokens_per_s": 150.0}, {"INTERNAL": 2}),
    ]
    soak = SoakResult(90, 10, 999, {"INTERNAL": 1}, {"server": 1 << 20, "GPU": 0})
    ours = ModelResult("llama-3.1-8b", "llm-grpc", figures, decode_limit=300.0, soak=soak)
    failed = ModelResult("llama-3.1-8b", "vllm", error="no such module")
    text = page("2026-11-21", MACHINE, [ours, failed], WORKS)
    assert text.startswith(
        "# NVIDIA H200\n\n2026-11-21, driver 580.95.05, memory of 4,800 GB/s by its clock; "
    )
    assert "| llama-3.1-8b | llm-grpc | concurrency 256 | 12,346 | 20,000 | 0 |" in text
    assert "| llama-3.1-8b | llm-grpc | concurrency 1 | 150 | 300 | 50% | 2 |" in text
    assert "90 requests answered, 10 cancelled by the caller, failed: 1 INTERNAL" in text
    assert "server +1.0 MiB, GPU +0.0 MiB" in text
    assert "vllm did not run llama-3.1-8b: no such module" in text
    json.dumps(asdict(ours))


def test_rows_have_as_many_cells_as_their_heading() -> None:
    figures = [Figures(work.name, "a load", {}) for work in WORKS]
    for limit in (0.0, 100.0):
        text = page("day", MACHINE, [ModelResult("m", "s", figures, decode_limit=limit)], WORKS)
        tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| model")]
        assert len(tables) == len(WORKS)
        assert all(len({line.count("|") for line in table}) == 1 for table in tables)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.integers(0, 10**6))
def test_growth_is_what_was_added_after_the_first_half(before: list[int], added: int) -> None:
    flat = Soaked(memory={"m": before[:1] * len(before)})
    assert flat.growth_bytes("m") == 0
    level, half = before[0], max(4, len(before))
    grown = Soaked(memory={"m": [level] * half + [level + added] * half})
    assert grown.growth_bytes("m") == added


def test_the_machine_is_that_of_nvml() -> None:
    nvml = SimpleNamespace(
        NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMaxClockInfo=lambda handle, clock: 3201,
        nvmlDeviceGetMemoryBusWidth=lambda handle: 6144,
        nvmlDeviceGetName=lambda handle: "NVIDIA H200",
        nvmlSystemGetDriverVersion=lambda: "580.95.05",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=5),
    )
    found = find_machine(nvml)
    assert (found.gpu, found.driver) == ("NVIDIA H200", "580.95.05")
    assert found.bytes_per_s == pytest.approx(4.917e12, rel=1e-3)
    assert gpu_meter(nvml)() == 5
