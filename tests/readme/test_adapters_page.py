"""docs/adapters.md is run: a random model and a random adapter stand for the reader's."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from llm_grpc.cli.main import main
from llm_grpc.client import Client
from tests.export.peft_adapters import matrices, save_adapter
from tests.export.random_model import save_random_model
from tests.readme.page import blocks, commands, missing_files
from tests.rpc.process import HANG_S, ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader is, once the page's commands before the server's were run."""
    folder = tmp_path_factory.mktemp("reader")
    save_random_model(folder / "my-model")
    save_adapter(folder / "my-adapter", matrices(folder / "my-model", 1))
    with chdir(folder):
        for command in commands(PAGE, "llm-grpc export"):
            assert main(shlex.split(command)[1:]) == 0
    return folder


def test_every_command_is_run_here() -> None:
    ours = [
        line
        for program in ("llm-grpc export", "llm-grpc serve", "grpcurl")
        for line in commands(PAGE, program)
    ]
    assert set("".join(blocks(PAGE, "sh")).splitlines()) - {""} == set(ours)


def test_the_server_and_its_operator(
    folder: Path, tool: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (serve,) = commands(PAGE, "llm-grpc serve")
    with ServerProcess(*shlex.split(serve)[2:], "--threads=1") as server:
        answers = []
        for command in commands(PAGE, "grpcurl"):
            words = shlex.split(command.replace("localhost:50052", server.admin_address))
            words = [word.replace("/adapters/legal", str(folder / "french")) for word in words]
            done = subprocess.run(
                [tool("grpcurl"), *words[1:]], check=False, capture_output=True, text=True, timeout=HANG_S
            )
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout))
        assert [each["name"] for each in answers[1]["adapters"]] == ["french", "legal"]
        with Client(server.address) as client:
            assert list(client.get_model().adapters) == ["french"]
            plain, french = (client.generate("a", adapter=name, max_tokens=20) for name in ("", "french"))
            assert plain.generated_text != french.generated_text


def test_links() -> None:
    assert not missing_files(PAGE)
