"""The contract through a Go program: the tests of clients/go against a server with two models."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_grpc.config import EMBEDDED_MODEL
from tests.rpc.process import HANG_S, ServerProcess

CONFIG = f"""
models:
  - name: embedded
    model: {EMBEDDED_MODEL}
  - name: second
    model: {EMBEDDED_MODEL}
    max_tokens: 5
    presence_penalty: 0.5
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with ServerProcess(f"--config={config}") as process:
        yield process


@pytest.mark.timeout(600)  # the first build compiles gRPC
def test_go_speaks_the_contract(go_program: Path, server: ServerProcess) -> None:
    done = subprocess.run(
        [go_program, "-test.v"],
        env={
            **os.environ,
            "LLM_GRPC_ADDRESS": server.address,
            "LLM_GRPC_ADMIN_ADDRESS": server.admin_address,
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stdout
    assert len(re.findall("--- PASS: ", done.stdout)) == 14
    assert re.findall("--- SKIP: ([A-Za-z]+)", done.stdout) == ["TestLoadedAdapter"]  # see tests/export


def test_the_module_asks_for_what_the_tools_are_built_with(repository: Path) -> None:
    """One build of gRPC serves both."""
    tools, module = (
        dict(re.findall(r"^\s(\S+) (v\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in (repository / ".ci/tools/go.mod", repository / "clients/go/go.mod")
    )
    assert module.items() <= tools.items()
