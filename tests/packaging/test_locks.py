"""The lock files: complete hashes, no addresses, one version of each package wherever locks meet."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

LOCKS = ("build", "serve", "cuda", "gpu", "dev", "bench", "export", "torch")
TOGETHER = ("build", "serve", "dev", "bench", "export", "torch")
REQUIREMENT = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)(?: ; (.*?))?(?: \\)?$")


def pins(repository: Path, lock: str) -> set[tuple[str, str, str]]:
    lines = (repository / f"requirements/{lock}.txt").read_text().splitlines()
    matches = [REQUIREMENT.match(line) for line in lines if not line.startswith(" ")]
    assert all(matches), f"requirements/{lock}.txt holds something that is not a pinned package"
    return {(match[1], match[2], match[3] or "") for match in matches if match}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_hashes_and_no_line_has_an_address(repository: Path, lock: str) -> None:
    text = (repository / f"requirements/{lock}.txt").read_text()
    assert "://" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert [block for block in blocks if "--hash=sha256:" not in block] == []


def test_locks_that_meet_in_one_environment_agree(repository: Path) -> None:
    seen = defaultdict(set)
    for lock in TOGETHER:
        for name, version, marker in pins(repository, lock):
            seen[name, marker].add(version)
    assert {key: versions for key, versions in seen.items() if len(versions) > 1} == {}


@pytest.mark.parametrize("lock", ["serve", "cuda"])
def test_serving_needs_no_torch_and_one_onnxruntime(repository: Path, lock: str) -> None:
    names = {name for name, _, _ in pins(repository, lock)}
    assert not names & {"torch", "transformers", "optimum", "optimum-onnx", "onnx"}
    assert len(names & {"onnxruntime", "onnxruntime-gpu"}) == 1


def test_torch_comes_from_a_lock_of_its_own(repository: Path) -> None:
    holders = [lock for lock in LOCKS if "torch" in {name for name, _, _ in pins(repository, lock)}]
    assert holders == ["torch"]


def test_what_tests_on_a_gpu_need_is_of_the_versions_of_development(repository: Path) -> None:
    ours, dev = pins(repository, "gpu"), pins(repository, "dev")
    assert {"pytest", "pytest-asyncio", "pytest-timeout"} <= {name for name, _, _ in ours}
    assert ours <= dev
