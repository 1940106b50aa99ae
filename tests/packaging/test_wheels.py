"""The two wheels: which files each owns, and what someone gets who installs one of them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import llm_grpc

MAX_WHEEL_BYTES = 12_000_000
"""The embedded model, compressed, is 7.2 MB for CPUs and 3.6 MB for GPUs."""
WEIGHTY = {"torch", "transformers", "optimum", "onnx"}


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(project: Path, target: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", target, project)
    (wheel,) = target.glob("*.whl")
    return wheel


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def metadata_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


class Environment:
    """A fresh virtual environment, filled with the locked versions of what it is told to install."""

    def __init__(self, directory: Path, repository: Path) -> None:
        run(sys.executable, "-m", "venv", directory / "venv")
        self._programs = directory / "venv/bin"
        self._constraints = directory / "constraints.txt"
        lock = (repository / "requirements/serve.txt").read_text()
        self._constraints.write_text("\n".join(re.findall(r"^\S+==[^\\\n]*", lock, re.MULTILINE)))

    def install(self, *requirements: str | Path) -> set[str]:
        """The names of all distributions that are there afterwards."""
        options = (
            "--quiet",
            "--no-compile",
            "--disable-pip-version-check",
            "--constraint",
            self._constraints,
        )
        self.run("pip", "install", *options, *requirements)
        listed = self.run("pip", "list", "--disable-pip-version-check", "--format=freeze")
        return {line.partition("==")[0] for line in listed.split()}

    def run(self, program: str, *arguments: str | Path) -> str:
        """What one of the environment's programs prints."""
        return run(self._programs / program, *arguments).strip()


@pytest.fixture
def environment(tmp_path: Path, repository: Path) -> Environment:
    return Environment(tmp_path, repository)


@pytest.fixture(scope="module")
def client_wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(repository / "clients/python", tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def server_wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(repository, tmp_path_factory.mktemp("server"))


def test_the_wheels_share_no_file_and_together_hold_the_package(
    client_wheel: Path, server_wheel: Path, repository: Path
) -> None:
    client, server = files_of(client_wheel), files_of(server_wheel)
    assert not client & server
    sources = {str(path.relative_to(repository)) for path in _sources(repository / "llm_grpc")}
    assert client | server == sources


def _sources(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".pyc")


def test_the_client_owns_the_root_the_stubs_and_the_typing_mark(client_wheel: Path) -> None:
    owned = {"llm_grpc/__init__.py", "llm_grpc/py.typed", "llm_grpc/v1/llm_pb2.pyi"}
    assert owned <= files_of(client_wheel)
    assert not [name for name in files_of(client_wheel) if name.startswith("llm_grpc/original")]


def test_the_server_ships_the_embedded_model_in_few_bytes(server_wheel: Path) -> None:
    names = files_of(server_wheel)
    assert {"llm_grpc/embedded/model.onnx", "llm_grpc/embedded_paged/model.onnx"} <= names
    assert server_wheel.stat().st_size < MAX_WHEEL_BYTES


def test_one_version_and_one_licence(client_wheel: Path, server_wheel: Path) -> None:
    for wheel in (client_wheel, server_wheel):
        metadata = metadata_of(wheel)
        assert f"\nVersion: {llm_grpc.__version__}\n" in metadata
        assert "\nLicense-Expression: Apache-2.0\n" in metadata
        assert "\nLicense-File: LICENSE\n" in metadata
    assert f"\nRequires-Dist: llm-grpc-client=={llm_grpc.__version__}\n" in metadata_of(server_wheel)


def test_the_client_installs_alone(client_wheel: Path, environment: Environment) -> None:
    installed = environment.install(client_wheel)
    assert {"llm-grpc-client", "grpcio", "protobuf"} <= installed
    assert not installed & {"llm-grpc", "onnxruntime", "numpy", "tokenizers", *WEIGHTY}
    environment.run("python", "-W", "error", "-c", "from llm_grpc.client import AsyncClient, Client")


@pytest.mark.slow
def test_the_server_installs_without_torch(
    client_wheel: Path, server_wheel: Path, environment: Environment
) -> None:
    installed = environment.install(client_wheel, f"{server_wheel}[cpu]")
    assert {"llm-grpc", "llm-grpc-client", "onnxruntime"} <= installed
    assert not installed & WEIGHTY
    assert environment.run("llm-grpc", "--version") == llm_grpc.__version__
