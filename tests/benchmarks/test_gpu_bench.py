"""The benchmark of GPUs runs, at toy sizes on the CPU."""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import bandwidth, peers
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bandwidth import copy_bandwidth
from benchmarks.gpu.kept import Kept, save
from benchmarks.gpu.machine import Machine, find_machine, gpu_meter
from benchmarks.gpu.results import ModelResult, SoakResult
from benchmarks.gpu.shapes import MEASURED, TOY
from benchmarks.gpu.skeleton import make_skeleton
from benchmarks.gpu.soak import Soaked
from benchmarks.gpu.table import page
from benchmarks.gpu.targets import TARGETS
from benchmarks.gpu.works import TOY_WORKS, WORKS, Figures
from llm_grpc.bench.entry import ModelLimits
from llm_grpc.bench.settings import WorkloadSettings
from llm_grpc.bench.shapes import shape_entries
from llm_grpc.errors import LLMGrpcError

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


def test_what_others_published_stands_beside_the_figure() -> None:
    figures = [Figures("long", "concurrency 256", {"output_tokens_per_s": 8_872.0})]
    results = [ModelResult(name, "llm-grpc", figures) for name in ("llama-3.1-8b", "qwen2.5-0.5b")]
    text = page("day", MACHINE, results, WORKS)
    assert "| concurrency 256 | 8,872 | - | 17,744 (TensorRT-LLM, FP8, H200) | 50% | 0 |" in text
    assert "| qwen2.5-0.5b | llm-grpc | concurrency 256 | 8,872 | - | - | - | 0 |" in text
    works, models = {work.name for work in WORKS}, {shape.name for shape in MEASURED}
    assert all(work in works and model in models for work, model in TARGETS)


def test_models_that_are_measured_one_at_a_time_are_one_page(tmp_path: Path) -> None:
    def measured(name: str, tokens_per_s: float) -> ModelResult:
        found = Figures("single", "concurrency 1", {"output_tokens_per_s": tokens_per_s}, {"INTERNAL": 1})
        soak = SoakResult(1, 2, 3, {}, {"GPU": 4})
        return ModelResult(name, "llm-grpc", [found], 200.0, soak)

    for commit, result in (("a", measured("old", 1)), ("b", measured("x", 2)), ("b", measured("y", 3))):
        save(tmp_path, Kept("day", commit, MACHINE, [result]), WORKS)
    save(tmp_path, Kept("day", "b", MACHINE, [measured("x", 50)]), WORKS)
    kept = json.loads((tmp_path / "nvidia-h200.json").read_text())
    assert kept["results"] == [asdict(measured("x", 50)), asdict(measured("y", 3))]
    text = (tmp_path / "nvidia-h200.md").read_text()
    assert "| x | llm-grpc | concurrency 1 | 50.0 | 200 | 25% | 1 |" in text
    assert "| y | llm-grpc | concurrency 1 | 3.0 | 200 |" in text


def test_a_copy_is_read_and_written() -> None:
    """libcudart that copies within this process, and one that fails."""
    libc = ctypes.CDLL(None)
    copies = []

    def copy(target: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, *_: object) -> int:
        libc.memcpy(target, source, size)
        copies.append(size.value)
        return 0

    def allocate(pointer: object, size: ctypes.c_size_t) -> int:
        return int(libc.posix_memalign(pointer, ctypes.c_size_t(4096), size))

    runtime = SimpleNamespace(cudaMalloc=allocate, cudaMemcpyAsync=copy, cudaDeviceSynchronize=lambda: 0)
    assert 1e6 < copy_bandwidth(runtime, 1 << 20) < 1e13
    assert copies == [1 << 20] * bandwidth.COPIES * bandwidth.ROUNDS
    runtime.cudaDeviceSynchronize = lambda: 700
    with pytest.raises(LLMGrpcError, match="cudaDeviceSynchronize failed with code 700"):
        copy_bandwidth(runtime, 1 << 20)


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
