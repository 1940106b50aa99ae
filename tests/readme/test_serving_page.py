"""docs/serving.md: the ConfigMap and the list of models are served as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llm_grpc.client import Client
from llm_grpc.v1 import model_pb2
from tests.readme.page import blocks, commands, missing_files
from tests.rpc.process import HANG_S, ServerProcess

PAGE = Path(__file__).parents[2] / "docs/serving.md"
CONFIG_MAP, MODELS = blocks(PAGE, "yaml")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The page's list of models, served."""
    file = tmp_path_factory.mktemp("serving") / "llm-grpc.yaml"
    file.write_text(MODELS)
    with ServerProcess(f"--config={file}") as server:
        yield server


def test_files_that_it_links_to_are_there() -> None:
    assert missing_files(PAGE) == []


def test_the_config_map(tmp_path: Path) -> None:
    """As a volume of that ConfigMap holds it; the port alone is another one, so that it is free."""
    config_map = yaml.safe_load(CONFIG_MAP)
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text)
    flags = (f"--config={tmp_path / 'llm-grpc.yaml'}", "--port=0")
    with ServerProcess(*flags, address=None) as server:
        assert server.address.startswith("0.0.0.0:")
        with Client(server.address.replace("0.0.0.0", "127.0.0.1")) as client:
            defaults = client.get_model().defaults
            assert defaults.max_tokens == 256
            assert [defaults.temperature, defaults.top_p] == pytest.approx([0.7, 0.9])
            assert client.generate("Translate to French: the black cat", max_tokens=4).usage.completion_tokens


def test_the_models_have_their_own_defaults(several: ServerProcess) -> None:
    """Greedy and sampled, from the same weights in one process."""
    with Client(several.address) as client:
        careful, playful = client.list_models()
        assert (careful.name, careful.is_default, careful.defaults.temperature) == ("careful", True, 0)
        assert (playful.name, playful.is_default, playful.defaults.temperature) == ("playful", False, 1)
        assert (careful.defaults.max_tokens, playful.defaults.max_tokens) == (128, 64)
        assert careful.digest == playful.digest
        assert {careful.state, playful.state} == {model_pb2.MODEL_STATE_READY}
        prompt = "Translate to French: the black cat"
        unnamed, named = client.generate(prompt), client.generate(prompt, model="careful")
        assert unnamed.generated_text == named.generated_text
        assert unnamed.model == named.model == "careful"
        seeds = {client.generate(prompt, model="playful").seed for _ in range(2)}
        assert len(seeds) == 2, "sampled, each with a seed of its own"
        greedy = client.generate(prompt, model="playful", temperature=0.0)
        assert greedy.generated_text == unnamed.generated_text
    log = "".join(several.log)
    assert "models: careful, playful; requests without a name get careful" in log
    assert log.index("the model careful is loaded") < log.index("the model playful is loaded")


def test_what_it_shows_works(several: ServerProcess) -> None:
    env = {**os.environ, "LLM_GRPC_ADDRESS": several.address}
    found = commands(PAGE, "llm-grpc")
    assert len(found) == 2
    for line in found:
        command = f"{sys.executable} -m llm_grpc.cli.main {line.removeprefix('llm-grpc ')}"
        done = subprocess.run(
            command, check=False, shell=True, env=env, capture_output=True, text=True, timeout=HANG_S
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
    (example,) = blocks(PAGE, "python")
    code = example.replace("localhost:50051", several.address)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split()[:2] == ["careful", "careful"]
    assert "playful 2 1.0" in done.stdout


@pytest.mark.parametrize("line", ["`models[1].max_running in\nllm-grpc.yaml: the value '0' should be"])
def test_the_error_that_it_quotes(tmp_path: Path, line: str) -> None:
    assert line in PAGE.read_text()
    file = tmp_path / "llm-grpc.yaml"
    file.write_text(MODELS.replace("max_running: 8", "max_running: 0"))
    command = [sys.executable, "-m", "llm_grpc.cli.main", "serve", "--config", "llm-grpc.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=HANG_S)
    assert done.returncode == 2
    quoted = " ".join(line.removeprefix("`").split())
    assert done.stderr.startswith(f"llm-grpc: {quoted}")
