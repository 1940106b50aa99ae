"""Each thing that a GPU lacks is one line that says what to install or to change."""

from __future__ import annotations

from dataclasses import replace

import onnxruntime as ort
import pytest

from llm_grpc.devices import CPU, Device
from llm_grpc.errors import StartupError
from llm_grpc.runtime import cuda
from llm_grpc.runtime.cuda import (
    LIBRARIES,
    PROVIDER,
    check_build,
    check_driver,
    check_gpu,
    check_libraries,
    check_providers,
    require_gpu,
    session_providers,
)
from llm_grpc.runtime.gpus import Version
from tests.unit.fake_nvml import H200, T4, driver


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were onnxruntime-gpu."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDER, "CPUExecutionProvider"])


def is_one_line(error: pytest.ExceptionInfo[StartupError]) -> bool:
    return len(str(error.value).splitlines()) == 1


def test_a_build_for_cpus() -> None:
    with pytest.raises(StartupError, match=r"onnxruntime 1\..* is a build for CPUs: pip uninstall") as error:
        check_build()
    assert str(error.value).endswith("pip install 'llm-grpc[cuda]'")
    assert is_one_line(error)


def test_both_builds_over_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "version", lambda package: "1.31.1")
    with pytest.raises(StartupError, match=r"are one module, and both are installed: pip uninstall"):
        check_build()


def test_an_old_driver() -> None:
    old = driver(H200, version="550.54.14", cuda=Version(12, 4))
    with pytest.raises(StartupError) as error:
        check_driver(old)
    assert str(error.value) == (
        "the NVIDIA driver is 550.54.14, which runs CUDA up to 12.4, and onnxruntime-gpu needs 13.0: install "
        "driver 580 or newer"
    )
    check_driver(driver(H200, cuda=Version(13, 0)))
    check_driver(driver(H200, cuda=Version(14, 1)))


def test_a_number_that_no_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(StartupError) as error:
        check_gpu(driver(H200, T4), 2)
    assert str(error.value) == "device is cuda:2, and there is cuda:0 NVIDIA H200, cuda:1 Tesla T4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(StartupError, match=r"there is no GPU \(CUDA_VISIBLE_DEVICES is ''\)"):
        check_gpu(driver(), 0)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
def test_gpus_that_there_is_code_for(capability: tuple[int, int]) -> None:
    gpu = replace(H200, capability=Version(*capability))
    assert check_gpu(driver(T4, gpu), 1, "x86_64") == gpu


def test_an_old_gpu() -> None:
    with pytest.raises(StartupError) as error:
        check_gpu(driver(H200, T4), 1)
    assert str(error.value) == (
        "cuda:1, Tesla T4, has compute capability 7.5, and 8.0 is needed: use a newer GPU, or a model for "
        "CPUs"
    )


@pytest.mark.parametrize("capability", [(9, 1), (10, 0), (10, 3), (12, 1), (13, 0)])
def test_a_gpu_that_this_build_has_no_code_for(capability: tuple[int, int]) -> None:
    gpu = replace(H200, capability=Version(*capability))
    with pytest.raises(
        StartupError, match=r"onnxruntime-gpu is built for 8.x, 9.0 and 12.0: use another GPU"
    ):
        check_gpu(driver(gpu), 0, "x86_64")
    assert check_gpu(driver(gpu), 0, "aarch64") == gpu  # built for others, and not looked into


@pytest.mark.parametrize("missing", LIBRARIES)
def test_a_library_that_does_not_load(missing: str) -> None:
    def load(name: str) -> object:
        if name == missing:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return name

    with pytest.raises(StartupError) as error:
        check_libraries(load)
    assert str(error.value).startswith(f"{missing} does not load (")
    assert str(error.value).endswith(LIBRARIES[missing])
    assert is_one_line(error)


def test_what_is_missing_first_is_said_first(gpu_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "check_libraries", lambda: None)
    assert require_gpu(0, lambda: driver(H200)) == H200
    with pytest.raises(StartupError, match="install driver 580"):
        require_gpu(3, lambda: driver(T4, cuda=Version(12, 0)))
    with pytest.raises(StartupError, match="device is cuda:3"):
        require_gpu(3, lambda: driver(T4))


def test_a_session_for_a_gpu_asks_for_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_ENABLE_CUDNN_FLASH_ATTENTION", raising=False)
    (name, options), last = session_providers(Device("cuda", 1), {"enable_cuda_graph": "1"})
    assert (name, last) == (PROVIDER, "CPUExecutionProvider")
    assert (options["device_id"], options["enable_cuda_graph"], options["use_tf32"]) == ("1", "1", "0")
    assert session_providers(CPU, {}) == ["CPUExecutionProvider"]


def test_a_silent_fallback_is_an_error() -> None:
    check_providers(CPU, ["CPUExecutionProvider"])
    check_providers(Device("cuda"), [PROVIDER, "CPUExecutionProvider"])
    with pytest.raises(StartupError, match="did not load its CUDA provider for cuda:0"):
        check_providers(Device("cuda"), ["CPUExecutionProvider"])
