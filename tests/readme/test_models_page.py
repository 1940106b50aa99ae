"""docs/models.md is run: a random model stands for the reader's, under the name that the page uses."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import pytest

from llm_grpc.cli.main import main
from llm_grpc.export import calibrate, progress
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.rounding.blocks import INT4, INT8
from llm_grpc.export.verify_report import THRESHOLDS
from llm_grpc.manifest import load_manifest
from tests.export.random_model import save_random_model
from tests.readme.page import blocks, commands, missing_files
from tests.rpc.process import ServerProcess

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "models.md"
LOCAL, ID, INT8_DIR = "my-model", "owner/my-model", "served-int8"

Said = dict[str, str]


def of(*words: str) -> list[str]:
    """The page's commands that begin with these words."""
    return [line for line in commands(PAGE, "llm-grpc") if line.split()[1 : len(words) + 1] == list(words)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader is: the model and a text are here."""
    folder = tmp_path_factory.mktemp("reader")
    save_random_model(folder / LOCAL)
    (folder / "text.txt").write_text("The garden is green, and Rosa buys bread at the market. " * 10)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Said:
    """What each command says that needs no other machine and no hub; run in the page's order."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    progress.log.addHandler(handler)
    progress.log.setLevel(logging.INFO)
    said = {}
    with chdir(folder):
        for command in [line for line in of("export") + of("verify") if ID not in line]:
            lines.clear()
            assert main(shlex.split(command)[1:]) == 0, lines
            said[command] = "\n".join(lines)
    progress.log.removeHandler(handler)
    progress.log.setLevel(logging.NOTSET)
    return said


def test_every_command_is_run_here() -> None:
    """The tests below run these."""
    assert sorted({" ".join(line.split()[1:2]) for line in commands(PAGE, "llm-grpc")}) == [
        "export", "generate", "model", "serve", "verify",
    ]  # fmt: skip
    others = set("".join(blocks(PAGE, "sh")).splitlines()) - {*commands(PAGE, "llm-grpc"), ""}
    assert others == set(commands(PAGE, "pip"))


def test_the_extras_are_there() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = [shlex.split(line)[2:] for line in commands(PAGE, "pip install")]
    assert installed == [["llm-grpc[export,cpu]"], ["llm-grpc[cpu]"]]
    assert {"export", "cpu"} <= set(extras)


def test_exports_say_what_the_page_says(exported: Said) -> None:
    for command, said in exported.items():
        if " export " in command:
            assert re.match(r".* needs .* of disk, .* are free, and about .* of memory, .* available", said)
        assert re.search(
            r"^relative logit error .*KL divergence .*greedy tokens equal, \d+ ties", said, re.MULTILINE
        )
    (verified,) = of("verify")
    assert re.search(r"perplexity [\d.]+ \(torch [\d.]+\)", exported[verified])


def test_the_table_of_layers(exported: Said) -> None:
    """The page's example and what is printed have one form."""
    (example,) = blocks(PAGE, "text")
    calibrated = [said for command, said in exported.items() if "--calibrate" in command]
    assert len(calibrated) == 3
    for said in (example, *calibrated):
        assert re.search(r"^layer +size  format +error$", said, re.MULTILINE)
        assert re.search(
            r"^model\.embed_tokens +\d+ x \d+  (int8|blocks8|blocks4x32) +0\.\d{4}$", said, re.MULTILINE
        )
        assert re.search(
            r"^model\.layers\.0\.self_attn\.q_proj\+k_proj\+v_proj +\d+ x \d+  \w+ +0\.", said, re.MULTILINE
        )
        assert re.search(r"^\d\.\d\d bits per weight$", said, re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in of("export") if ID not in line])
def test_the_directories_are_what_the_page_says(exported: Said, folder: Path, line: str) -> None:
    _, _, _, target, *flags = shlex.split(line)
    said = {name: value for name, value in pairwise(flags) if name.startswith("--")}
    manifest = load_manifest(folder / target)
    assert manifest.weights == said.get("--weights", "fp32")
    assert len(manifest.graphs) == int(said.get("--stages", 1))
    assert manifest.name == LOCAL


def test_a_hub_id_without_a_hub(folder: Path) -> None:
    (command,) = [line for line in of("export") if ID in line]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    program = [sys.executable, "-m", "llm_grpc.cli.main", *shlex.split(command)[1:]]
    done = subprocess.run(
        program, check=False, capture_output=True, text=True, timeout=110, env=env, cwd=folder / LOCAL
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"llm-grpc: cannot load {ID}: ")
    assert "not in the hub's cache" in line
    assert not (folder / LOCAL / "served").exists()


def test_it_is_served_and_answers(
    exported: Said, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (serve,), (generate,) = of("serve"), of("generate")
    flags = [word.replace(INT8_DIR, str(folder / INT8_DIR)) for word in shlex.split(serve)[2:]]
    with ServerProcess(*flags) as server:
        monkeypatch.setenv("LLM_GRPC_ADDRESS", server.address)
        assert main(shlex.split(generate)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_inspect(exported: Said, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = of("model", "inspect")
    with chdir(folder):
        assert main(shlex.split(command)[1:]) == 0
    said = capsys.readouterr().out
    assert "cache per token" in said
    assert "slots that fit into 8.0 GiB beside the weights" in said


def test_the_limits_are_those_of_the_verification() -> None:
    rows = re.findall(r"^\| (\w+) \|.* \| (\S+) \| (\d+)% \|$", PAGE.read_text(), re.MULTILINE)
    assert {weights: (float(kl), int(greedy) / 100) for weights, kl, greedy in rows} == {
        weights: (limits.mean_kl_nats, limits.greedy_agreement) for weights, limits in THRESHOLDS.items()
    }


def test_the_numbers_of_the_formats() -> None:
    text = PAGE.read_text()
    assert f"({INT4.mean_bits} to {INT8.mean_bits})" in text
    assert f"| {INT4.mean_bits / 8:.2f}; calibrated up to {Recipe().mean_bits / 8:.2f}," in text
    most = calibrate.MAX_WINDOWS * calibrate.WINDOW_TOKENS
    assert f"has {calibrate.MIN_TOKENS} tokens at least" in text
    assert f"{most:,} are the most" in text
    assert f"{calibrate.MAX_WINDOWS} windows of {calibrate.WINDOW_TOKENS} tokens" in text
    assert f"{calibrate.NUM_ROWS:,} positions" in text


def test_every_file_that_is_named_is_there() -> None:
    assert missing_files(PAGE) == []
