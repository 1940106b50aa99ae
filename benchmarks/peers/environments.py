"""An environment for each contestant: exact versions, made once, outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.contestants import HERE, OURS

REPOSITORY = HERE.parents[1]


def cache_root() -> Path:
    """Where environments and models are kept between runs."""
    if chosen := os.environ.get("LLM_GRPC_PEERS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-grpc" / "peers"


def python_of(folder: str, cache: Path, requirements: str = "requirements.txt") -> Path:
    """The interpreter of a folder's environment, which is made where it is missing.

    Raises:
        subprocess.CalledProcessError: its packages cannot be installed.
    """
    if folder == OURS:
        return Path(sys.executable)
    wanted = HERE / folder / requirements
    directory = cache / "environments" / f"{folder}-{wanted.stem}-{digest(wanted)}"
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        _make(directory, wanted)
        (directory / "complete").touch()
    return directory / "bin" / "python"


def converter_of(folder: str, cache: Path) -> Path:
    """The interpreter for a folder's convert.py: an environment of its own where it has convert.txt."""
    has_own = (HERE / folder / "convert.txt").exists()
    return python_of(folder, cache, "convert.txt" if has_own else "requirements.txt")


def process_environment(threads: int) -> dict[str, str]:
    """The variables of a contestant's process: as many threads as it may use, no GPU, nothing downloaded."""
    ours = {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return os.environ | ours


def digest(*files: Path) -> str:
    """Changes when one of the files does."""
    state = hashlib.sha256()
    for file in files:
        state.update(file.read_bytes())
    return state.hexdigest()[:8]


def _make(directory: Path, requirements: Path) -> None:
    """What the file names and nothing else: it holds all of the dependencies.

    With uv where that is installed: it shares files between environments, and torch is in several of them.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    python = directory / "bin" / "python"
    if uv := shutil.which("uv"):
        # The plain interpreter: a virtual environment's would be linked to that environment.
        _run(
            uv,
            "venv",
            "--quiet",
            "--python",
            getattr(sys, "_base_executable", sys.executable),
            str(directory),
        )
        _run(uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(requirements))
    else:
        _run(sys.executable, "-m", "venv", str(directory))
        _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
