"""docs/benchmarking.md is run, with fewer requests than a reader would send."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from llm_grpc.bench.figures import sections
from llm_grpc.bench.record import RunRecord
from llm_grpc.bench.statistics import summarize
from llm_grpc.cli.main import main
from tests.readme.page import blocks, commands, missing_files
from tests.rpc.process import ServerProcess

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "benchmarking.md"
TRACE, RECORD = blocks(PAGE, "json")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as process:
        yield process


def test_every_command_is_run_here() -> None:
    ours, pip = commands(PAGE, "llm-grpc bench"), commands(PAGE, "pip")
    assert set("".join(blocks(PAGE, "sh")).splitlines()) - {""} == {*ours, *pip}
    (install,) = pip
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert shlex.split(install)[2:] == ["llm-grpc[cpu,bench]"]
    assert {"cpu", "bench"} <= set(extras)


@pytest.mark.parametrize("command", commands(PAGE, "llm-grpc"))
def test_the_commands(
    command: str,
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "trace.json").write_text(TRACE)
    monkeypatch.setenv("LLM_GRPC_ADDRESS", server.address)
    monkeypatch.setenv("LLM_GRPC_BENCH_REQUESTS", "3")
    with chdir(tmp_path):
        code = main(shlex.split(command.replace("localhost:9464", server.metrics_address))[1:])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert re.search(r"^answered +([23]) of \1\b", said.out, re.MULTILINE)
    for name in re.findall(r"--(?:json|plot) (\S+)", command):
        assert (tmp_path / name).stat().st_size > 0


def test_the_example_has_the_rows_that_are_printed() -> None:
    (example,) = blocks(PAGE, "text")
    labels = [re.split(r"  +", line)[0] for line in example.splitlines()[2:-1] if line]
    summary = summarize(RunRecord.model_validate_json(RECORD))
    assert labels == [label for section in sections(summary) for label, _ in section][: len(labels)]


def test_the_record_goes_through_the_python_lines(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(RECORD)
    (code,) = blocks(PAGE, "python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert '"p50": 0.2' in done.stdout


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"`(llm_grpc/\S+\.py)`", PAGE.read_text()):
        assert (REPOSITORY / name).exists()
    assert "](" not in PAGE.read_text() or missing_files(PAGE) == []
