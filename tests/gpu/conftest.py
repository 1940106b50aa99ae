"""Tests that need an NVIDIA GPU: `make test-gpu`. Without one they fail, and say what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu.fill import fill
from llm_grpc.runtime.cuda import require_gpu
from llm_grpc.runtime.gpus import Gpu


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """GPU 0, found usable."""
    return require_gpu(0)


@pytest.fixture(scope="session")
def skeletons() -> Path:
    """The directory of skeletons, which LLM_GRPC_SKELETONS names: FORMAT/SHAPE in it."""
    chosen = os.environ.get("LLM_GRPC_SKELETONS", "")
    assert chosen, "set LLM_GRPC_SKELETONS to the directory that `make gpu-skeletons` wrote"
    return Path(chosen)


@pytest.fixture
def filled(skeletons: Path) -> Iterator[list[Path]]:
    """Directories of skeletons to fill; their weights are dropped at the end."""
    directories: list[Path] = []
    yield directories
    for directory in directories:
        for path in directory.glob("*.data"):
            path.unlink()


def ready(directory: Path, filled: list[Path]) -> Path:
    """The directory with its weights."""
    fill(directory)
    filled.append(directory)
    return directory
