"""The real onnxruntime-gpu on a machine without a GPU: every way it fails is an error of ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from llm_grpc.runtime.cuda import BUILT_FOR, LIBRARIES, PAGED_CAPABILITY
from llm_grpc.runtime.gpus import Version
from tests.export.cuda_kernels import DATA
from tests.packaging.gpu_environment import gpu_python
from tests.packaging.kernel_registry import architectures, kernels, linked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def python(repository: Path) -> Path:
    return gpu_python(repository)


def call(python: Path, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=env)


def test_the_doctor_says_that_there_is_no_driver(python: Path, repository: Path) -> None:
    done = call(python, repository, "-m", "llm_grpc.cli.main", "doctor", "--device", "cuda")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(
        r"(?m)^cuda:0 usable  FAILED  no NVIDIA driver answers \(.*\): install driver 580", done.stdout
    )


def test_a_build_for_gpus_without_a_gpu_is_not_healthy_and_computes_on_the_cpu(
    python: Path, repository: Path
) -> None:
    done = call(python, repository, "-m", "llm_grpc.cli.main", "doctor", "--json")
    assert done.returncode == 1
    outcomes = {(o["device"], o["test"]): o["passed"] for o in json.loads(done.stdout)["outcomes"]}
    assert outcomes == {("cpu", "product"): True, ("cpu", "model"): True, ("cuda:0", "usable"): False}


@pytest.mark.parametrize("missing", [next(iter(LIBRARIES))])
def test_a_library_that_is_not_there_is_named(python: Path, repository: Path, missing: str) -> None:
    done = call(python, repository, "-c", "from llm_grpc.runtime.cuda import *; check_libraries()")
    assert f"StartupError: {missing} does not load" in done.stderr


def test_a_session_without_the_libraries_is_an_error(python: Path, repository: Path) -> None:
    """Alone, ONNX Runtime would compute on the CPU."""
    code = "from llm_grpc.runtime.probe import *; print(product_error(Device('cuda')))"
    done = call(python, repository, "-c", code)
    assert done.returncode != 0
    assert re.search(r"(Startup|Manifest)Error: .*cuda:0", done.stderr)


def test_the_provider_is_linked_with_what_is_checked(python: Path) -> None:
    # The driver's own library is in no package, and cuDNN is loaded when it is needed.
    assert linked(python, "cuda") == {*LIBRARIES, "libcuda.so.1"} - {"libcudnn.so.9"}


def test_the_provider_has_code_for_the_gpus_that_are_let_in(python: Path) -> None:
    found = {Version(*divmod(number, 10)) for number in architectures(python)}
    assert {capability for capability in found if capability >= PAGED_CAPABILITY} == {
        Version(8, 0), Version(8, 6), Version(8, 9), Version(9, 0), Version(12, 0)
    }  # fmt: skip
    assert {capability.major for capability in found if capability >= PAGED_CAPABILITY} == set(BUILT_FOR)


def test_the_kernels_are_those_of_the_package(python: Path) -> None:
    """`python -m tests.packaging.kernel_registry` writes them again."""
    assert json.loads(DATA.read_text())["kernels"] == kernels(python)
