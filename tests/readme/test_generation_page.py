"""docs/generation.md is run, and its table has every field that there is to ask for."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_grpc.cli.main import main
from llm_grpc.v1 import llm_pb2
from tests.readme.page import blocks, commands, missing_files
from tests.rpc.process import HANG_S, ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "generation.md"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ServerProcess() as process:
        yield process.address


def test_the_example(address: str) -> None:
    (code,) = blocks(PAGE, "python")
    command = [sys.executable, "-c", code.replace("localhost:50051", address)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    first, second, tokens = done.stdout.splitlines()
    assert (first[:4], second[:4]) == ("0 7 ", "1 8 ")
    told = b"".join(text for text, _ in ast.literal_eval(tokens))
    assert told.decode() == first[4:]


def test_the_command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = commands(PAGE, "llm-grpc")
    monkeypatch.setenv("LLM_GRPC_ADDRESS", address)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_the_table_has_every_field() -> None:
    said = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    for message in (llm_pb2.Sampling, llm_pb2.Stopping, llm_pb2.ResponseOptions):
        fields = {field.name for field in message.DESCRIPTOR.fields}
        assert fields <= said, fields - said


def test_no_link_is_broken() -> None:
    assert missing_files(PAGE) == []
