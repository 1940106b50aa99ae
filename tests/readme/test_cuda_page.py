"""docs/cuda.md: what can run without a GPU is run, and the rest is held to what the code says."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from llm_grpc.cli.main import build_app, main
from llm_grpc.config import EngineConfig
from llm_grpc.runtime import cuda, gpus
from tests.readme.page import blocks, commands, missing_files

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "cuda.md"


def test_every_command_is_tested_here() -> None:
    ours = [
        line
        for program in ("llm-grpc doctor", "llm-grpc serve", "pip", "make")
        for line in commands(PAGE, program)
    ]
    assert set("".join(blocks(PAGE, "sh")).splitlines()) - {""} == set(ours)


@pytest.mark.parametrize("command", commands(PAGE, "llm-grpc doctor"))
def test_the_doctor(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().out


def test_serving_takes_what_the_page_says() -> None:
    for command, model in zip(commands(PAGE, "llm-grpc serve"), (None, "served"), strict=True):
        _, bound, _ = build_app().parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
        assert bound.arguments["engine"] == EngineConfig(device="cuda")
        found = bound.arguments.get("model")
        assert (found and str(found.model)) == model


def test_the_extra_is_there() -> None:
    (install,) = commands(PAGE, "pip")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert shlex.split(install)[2:] == ["llm-grpc[cuda]"]
    assert any(requirement.startswith("onnxruntime-gpu[cuda,cudnn]") for requirement in extras["cuda"])


def test_the_make_targets_and_their_settings_are_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in commands(PAGE, "make"):
        _, target, *settings = shlex.split(command)
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
        assert all(f"\n{setting.split('=')[0]} ?=" in makefile for setting in settings)


def test_what_is_needed_is_what_is_checked() -> None:
    text = PAGE.read_text()
    assert f"| NVIDIA driver | {gpus.LEAST_DRIVER}, which runs CUDA {cuda.CUDA.major} |" in text
    assert f"| GPU | compute capability {cuda.PAGED_CAPABILITY} " in text


def test_the_lines_are_those_of_the_code() -> None:
    said = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(said) == 7
    source = "".join(Path(str(module.__file__)).read_text() for module in (cuda, gpus))
    source = re.sub(r'"\n\s+f?"', "", source)
    assert [line for line in said if line not in source] == []


def test_every_file_that_is_named_is_there() -> None:
    assert missing_files(PAGE) == []
