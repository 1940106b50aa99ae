"""What every test folder shares: programs of other languages, and the rule that CI skips nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
"""No test passes or fails by how long it takes."""

REPOSITORY = Path(__file__).parents[1]
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Finds a program that `make tools` builds, or one on PATH. Without it the test is skipped."""
    built = os.environ.get("LLM_GRPC_TOOLS") or _where_tools_are()

    def find(name: str) -> str:
        path = shutil.which(name, path=built) or shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is missing: `make tools` builds it where Go is installed")
        return path

    return find


@pytest.fixture(scope="session")
def go_program(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of clients/go as a program, compiled as .ci/tools compiles its own, to share builds."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed")
    path = tmp_path_factory.mktemp("go") / "contract.test"
    subprocess.run(
        [go, "test", "-c", "-trimpath", "-gcflags=all=-N -l", "-ldflags=-s -w", "-o", path, "."],
        cwd=repository / "clients" / "go",
        env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        check=True,
        timeout=600,
    )
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU, unless the marks that are asked for name it."""
    if "gpu" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _where_tools_are() -> str:
    return subprocess.check_output([REPOSITORY / ".ci/tools/build", "--where"], text=True).strip()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_if_skipped_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_if_skipped_in_ci((yield))


def _fail_if_skipped_in_ci(report: Report) -> Report:
    expected_failure = hasattr(report, "wasxfail")
    if os.environ.get("CI") and report.skipped and not expected_failure:
        report.outcome = "failed"
        report.longrepr = f"in CI a skipped test is a failure: {report.longrepr}"
    return report
