"""An export that is stopped or runs out of disk leaves nothing, and the older directory as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_grpc.export.recipe import Recipe
from llm_grpc.export.stages import stages_of
from llm_grpc.export.verify import STAGES as VERIFY_STAGES
from llm_grpc.manifest import MANIFEST

TITLES = [title for title, _ in stages_of(Recipe())] + list(VERIFY_STAGES)

SIGNAL_AT_STAGE = """
import logging, os, sys
from llm_grpc.cli.main import main

number, title, *argv = sys.argv[1:]

class Interrupt(logging.Handler):
    def emit(self, record):
        if record.getMessage().endswith(title):
            os.kill(os.getpid(), int(number))

logging.getLogger("llm_grpc.export.progress").addHandler(Interrupt())
sys.exit(main(["export", *argv]))
"""

SMALL_FILES = """
import resource, sys
from llm_grpc.cli.main import main

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.exit(main(["export", *sys.argv[1:]]))
"""


def run(program: str, *arguments: str, measured: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program of these; ``measured`` False keeps coverage, which writes files too, out of it."""
    command = [sys.executable, "-c", program, *arguments]
    env = {k: v for k, v in os.environ.items() if measured or not k.startswith("COVERAGE_")}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, env=env)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """What is at the place of the new directory."""
    target = tmp_path / "models" / "model"
    target.mkdir(parents=True)
    (target / MANIFEST).write_text("older")
    return target


def assert_as_before(older: Path) -> None:
    assert [path.name for path in older.parent.iterdir()] == ["model"]
    assert [path.name for path in older.iterdir()] == [MANIFEST]
    assert (older / MANIFEST).read_text() == "older"


@pytest.mark.parametrize(("number", "title"), [(2, title) for title in TITLES] + [(15, TITLES[1])], ids=str)
def test_a_signal_at_any_stage_leaves_nothing(checkpoint: Path, older: Path, number: int, title: str) -> None:
    done = run(SIGNAL_AT_STAGE, str(number), title, str(checkpoint), str(older))
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "llm-grpc: interrupted; nothing was written"
    assert "Traceback" not in done.stderr
    assert_as_before(older)


def test_a_full_disk_leaves_nothing(checkpoint: Path, older: Path) -> None:
    """A limit on the size of a file fails writes as a full disk does."""
    done = run(SMALL_FILES, str(checkpoint), str(older), measured=False)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"llm-grpc: {checkpoint}: no space is left on the disk; nothing was kept"
    assert "Traceback" not in done.stderr
    assert_as_before(older)
