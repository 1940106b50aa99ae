"""benchmarks/gpu/README.md: files, targets and options that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.shapes import MEASURED
from benchmarks.gpu.works import WORKS
from tests.readme.page import missing_files

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "benchmarks/gpu/README.md"
TEXT = PAGE.read_text()


def test_every_file_that_is_named_is_there() -> None:
    assert missing_files(PAGE) == []


def test_the_works_and_the_targets_are_there() -> None:
    assert {work.name for work in WORKS} <= set(re.findall(r"`(\w+)`", TEXT))
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", TEXT):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_every_model_is_measured_with_options_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.findall(r'BENCH_GPU_ARGS="([^"]+)"', TEXT)
    assert {options.split()[1] for options in found} == {shape.name for shape in MEASURED}
    for options in found:
        assert main([str(tmp_path), *options.split()]) == 1, "there is no skeleton"


def test_the_session_fits_its_time() -> None:
    (minutes,) = re.findall(r"A first session of (\d+) minutes", TEXT)
    limits = [int(limit) for limit in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)]
    assert sum(limits) < int(minutes)
    timeouts = [int(seconds) for seconds in re.findall(r"`timeout (\d+) ", TEXT)]
    assert timeouts == [60 * limit for limit in limits[1:]]
