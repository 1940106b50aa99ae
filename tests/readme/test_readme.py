"""The README is run: its commands, its Python, and the output that it says the demo prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.readme.page import blocks, commands, missing_files
from tests.rpc.process import ServerProcess

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "localhost:50051"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as process:
        yield process


def run(command: str, server: ServerProcess, **variables: str) -> str:
    """Run one command of the README against a server on another port."""
    command = command.replace(ADDRESS, server.address)
    done = subprocess.run(
        command,
        shell=True,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_the_grpcurl_lines(server: ServerProcess, tool: Callable[[str], str]) -> None:
    path = f"{Path(tool('grpcurl')).parent}:{os.environ['PATH']}"
    original, streamed, listed, described = (run(c, server, PATH=path) for c in commands(README, "grpcurl"))
    assert '"generated_text": "Le chat voit la maison."' in original
    assert '"finish_reason": "FINISH_REASON_EOS"' in streamed
    assert {"LLMService", "llm_grpc.v1.LLMService", "grpc.health.v1.Health"} <= set(listed.split())
    assert "string prompt = 1;" in described


def test_the_client_commands(server: ServerProcess) -> None:
    here = Path(sys.executable).parent
    generate, health = (
        c.replace(".venv/bin", str(here)) for c in commands(README, ".venv/bin/llm-grpc")[1:3]
    )
    assert run(generate, server, LLM_GRPC_ADDRESS=server.address) == "Le chat voit la maison.\n"
    assert run(health, server, LLM_GRPC_ADDRESS=server.address) == "SERVING\n"


def test_the_python_lines(server: ServerProcess) -> None:
    (code,) = blocks(README, "python")
    done = subprocess.run(
        [sys.executable, "-c", code.replace(ADDRESS, server.address)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "Le chat voit la maison.\n" + "Le chat voit la maison."


def test_the_demo_prints_what_the_readme_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_grpc.cli.main", "demo"],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    (said,) = blocks(README, "text")
    port = re.compile(r"127\.0\.0\.1:\d+")
    assert port.sub("PORT", done.stdout) == port.sub("PORT", said)


def test_every_file_that_is_named_is_there() -> None:
    assert missing_files(README) == []


def test_the_make_targets_are_there() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in {command.split()[1] for command in commands(README, "make")}:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
