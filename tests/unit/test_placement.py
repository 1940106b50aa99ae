"""Where a model runs, by what was asked for and what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from llm_grpc.config import EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL, EngineConfig, ModelConfig
from llm_grpc.devices import CPU, Device
from llm_grpc.errors import ManifestError, StartupError
from llm_grpc.manifest import FileEntry, Manifest, load_manifest
from llm_grpc.runtime import cuda
from llm_grpc.runtime.gpus import Driver
from llm_grpc.runtime.placement import place
from llm_grpc.runtime.session import open_session
from llm_grpc.server.runners import cache_bytes
from tests.unit.fake_nvml import H200, L4, driver

SLOTS = load_manifest(EMBEDDED_MODEL)


def half(lowering: str) -> Manifest:
    cache = SLOTS.kv_cache.model_copy(update={"dtype": "bfloat16"})
    return SLOTS.model_copy(update={"lowering": lowering, "weights": "bf16", "kv_cache": cache})


def two_gpus() -> Driver:
    return driver(H200, L4)


def nothing() -> Driver:
    raise AssertionError("a model for CPUs asks for no GPU")


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(cuda, "check_libraries", lambda: None)


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_a_model_for_cpus(asked: str) -> None:
    assert place(asked, SLOTS, nothing) == (CPU,)


@pytest.mark.parametrize(("asked", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_model_for_gpus(gpu_machine: None, asked: str, index: int) -> None:
    assert place(asked, half("paged"), two_gpus) == (Device("cuda", index),)


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("auto", EMBEDDED_MODEL),
        ("cpu", EMBEDDED_MODEL),
        ("cuda", EMBEDDED_PAGED_MODEL),
        ("cuda:1", EMBEDDED_PAGED_MODEL),
        ("cuda:0,cuda:1", EMBEDDED_PAGED_MODEL),
        ("cpu,cuda:1", EMBEDDED_MODEL),
    ],
)
def test_the_embedded_model_is_the_one_for_the_device(asked: str, model: Path) -> None:
    found = ModelConfig(max_tokens=7).on(asked)
    assert found == ModelConfig(model=model, max_tokens=7)
    other = ModelConfig(model=Path("other"))
    assert other.on(asked) is other


@pytest.mark.parametrize("asked", ["cuda", "cuda:1"])
def test_the_embedded_model_runs_on_gpus(gpu_machine: None, asked: str) -> None:
    manifest = load_manifest(ModelConfig().on(asked).model)
    assert [device.kind for device in place(asked, manifest, two_gpus)] == ["cuda"]


def test_auto_says_why_a_model_for_gpus_cannot_run_here() -> None:
    with pytest.raises(StartupError, match="is a build for CPUs"):
        place("auto", half("paged"), two_gpus)


@pytest.mark.parametrize(
    ("asked", "manifest", "cause"),
    [
        ("cpu", half("paged"), "device is cpu, and embedded has lowering paged, which needs an NVIDIA GPU"),
        ("cuda:1", SLOTS, "device is cuda:1, and embedded has lowering slots, which is for CPUs"),
        ("auto", half("slots"), "embedded computes in bfloat16, which needs an NVIDIA GPU"),
        ("cpu", half("slots"), "embedded computes in bfloat16, which needs an NVIDIA GPU"),
        ("cuda", half("slots"), "embedded computes in bfloat16, which needs an NVIDIA GPU"),
    ],
)
def test_a_model_on_what_has_no_kernels_for_it(asked: str, manifest: Manifest, cause: str) -> None:
    with pytest.raises(ManifestError, match=cause):
        place(asked, manifest, two_gpus)


def in_two(manifest: Manifest) -> Manifest:
    """In two stages: of three layers the first stage has one, of 300 MB, and the second two, of 500 MB."""
    graphs = ("model-1-of-2.onnx", "model-2-of-2.onnx")
    sizes = zip(graphs, (300_000_000, 500_000_000), strict=True)
    files = {name: FileEntry(size_bytes=size, sha256="0" * 64) for name, size in sizes}
    cache = manifest.kv_cache.model_copy(update={"num_layers": 3})
    return manifest.model_copy(
        update={
            "graph": graphs[0], "stages": graphs, "stage_layers": (1, 2), "files": files, "kv_cache": cache,
        }
    )  # fmt: skip


def test_a_stage_on_each_device(gpu_machine: None) -> None:
    gpus = (Device("cuda", 1), Device("cuda", 0))
    assert place("cuda:1,cuda:0", in_two(half("paged")), two_gpus) == gpus
    assert place("cuda:1", in_two(half("paged")), two_gpus) == gpus[:1]
    assert place("cpu,cpu", in_two(SLOTS), nothing) == (CPU, CPU)


@pytest.mark.parametrize(
    ("asked", "manifest", "cause"),
    [
        ("cuda:0,cuda:1", half("paged"), "device is cuda:0,cuda:1, and embedded is not cut into stages: "),
        ("cuda:0,cuda:1,cuda:2", in_two(half("paged")), "embedded has 2 stages: .* with --stages 3$"),
        ("cuda:0,cuda:2", in_two(half("paged")), "device is cuda:2, and there is cuda:0 "),
        ("cuda:0,cpu", in_two(half("paged")), "device is cpu, and embedded has lowering paged"),
    ],
)
def test_devices_that_cannot_be(gpu_machine: None, asked: str, manifest: Manifest, cause: str) -> None:
    with pytest.raises(StartupError, match=cause):
        place(asked, manifest, two_gpus)


def test_a_wrong_wording_stops_the_configuration() -> None:
    with pytest.raises(ValueError, match="'gpu' is no device: say auto, cpu, cuda or cuda:N"):
        EngineConfig(device="gpu")


def test_a_session_never_falls_back_in_silence() -> None:
    """This build has no CUDA provider: onnxruntime alone would warn, and compute on the CPU."""
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(StartupError, match="did not load its CUDA provider for cuda:0"),
    ):
        open_session(EMBEDDED_MODEL / "model.onnx", 1, device=Device("cuda"))


def test_a_graph_that_cannot_be_loaded_is_named_with_its_device(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ManifestError, match=r"cannot load the graph .*model.onnx: "):
        open_session(tmp_path / "model.onnx", 1)


def test_the_cache_gets_a_part_of_the_gpu_s_memory(
    gpu_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.require_gpu, "__defaults__", (two_gpus,))
    monkeypatch.setattr(place, "__defaults__", (two_gpus,))
    manifest = half("paged")
    engine = EngineConfig(device="cuda:1", gpu_memory_fraction=0.5, max_running=20)
    logits = (96 + 1) * manifest.vocabulary_size * 4  # 20 samples and 64 scores, rounded up
    assert cache_bytes(engine, manifest) == L4.free_bytes // 2 - manifest.weights_bytes - logits
    assert cache_bytes(replace(engine, kv_cache_memory=1), manifest) == 0, "there is nothing to find out"


@pytest.mark.parametrize("asked", ["cuda:0,cuda:1", "cuda:1,cuda:0"])
def test_the_gpu_with_the_least_room_for_its_stage_counts(
    gpu_machine: None, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(cuda.require_gpu, "__defaults__", (two_gpus,))
    monkeypatch.setattr(place, "__defaults__", (two_gpus,))
    engine, manifest = EngineConfig(device=asked, gpu_memory_fraction=0.5), in_two(half("paged"))
    logits = (96 + 1) * manifest.vocabulary_size * 4
    if asked == "cuda:0,cuda:1":
        room = (L4.free_bytes // 2 - 500_000_000 - 2 * logits) * 3 // 2  # of two micro-batches
    else:
        room = (L4.free_bytes // 2 - 300_000_000) * 3
    assert cache_bytes(engine, manifest) == room
    one = replace(engine, device="cuda:1")
    assert cache_bytes(one, manifest) == L4.free_bytes // 2 - 800_000_000 - logits
