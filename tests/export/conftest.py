"""One random checkpoint and its export, for every test that only reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_grpc.export.command import export
from tests.export.random_model import save_random_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("source") / "random-llama")


@pytest.fixture(scope="session")
def model_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported") / "model"
    export(str(checkpoint), directory, "random")
    return directory
