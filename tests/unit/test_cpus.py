"""As many threads as the process may use CPUs: by its affinity, and by its cgroup's quota."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_grpc.cpus import cpu_quota, threads_to_use

V1_MOUNT = (
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct\n"
)
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup{at} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = (
    "23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
)


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A root directory with these cgroups."""
    proc = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": OTHERS + mounts}
    for name, text in (proc | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(quota: int, directory: str = "", period: int = 100_000) -> dict[str, str]:
    return {
        f"cpu,cpuacct/{directory}cpu.cfs_quota_us": f"{quota}\n",
        f"cpu,cpuacct/{directory}cpu.cfs_period_us": f"{period}\n",
    }


V1_GROUPS = "9:name=systemd:/a\n4:memory:/a\n1:cpu,cpuacct:{path}\n0::/\n"


@pytest.mark.parametrize(
    ("path", "files", "quota"),
    [
        ("/", {}, None),
        ("/", {"cpu.max": "max 100000\n"}, None),
        ("/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("/pod/app", {"pod/app/cpu.max": "25000 100000\n"}, 0.25),
        ("/pod/app", {"pod/app/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, 3.0),
        ("/pod/app", {"pod/app/cpu.max": "400000 100000\n", "pod/cpu.max": "100000 50000\n"}, 2.0),
        ("/pod/app", {"other/cpu.max": "100000 100000\n"}, None),
        ("/../../elsewhere", {"cpu.max": "200000 100000\n"}, 2.0),
        ("/", {"cpu.max": "nonsense\n"}, None),
        ("/", {"cpu.max": "100000 0\n"}, None),
        ("/", {"cpu.max": "0 0\n"}, None),
    ],
)
def test_version_2(tmp_path: Path, path: str, files: dict[str, str], quota: float | None) -> None:
    root = machine(tmp_path, f"0::{path}\n", V2_MOUNT.format(root="/", at=""), files)
    assert cpu_quota(root) == quota


@pytest.mark.parametrize(
    ("mounted", "path", "files", "quota"),
    [
        ("/", "/", v1(-1), None),
        ("/", "/", v1(250_000), 2.5),
        ("/", "/docker/abc", v1(100_000, "docker/abc/", 50_000) | v1(-1), 2.0),
        ("/", "/docker/abc", v1(-1, "docker/abc/") | v1(300_000, "docker/"), 3.0),
        # A container that sees the host's path and has its own group mounted.
        ("/docker/abc", "/docker/abc", v1(100_000), 1.0),
        ("/docker/abc", "/docker/abc/inner", v1(200_000) | v1(50_000, "inner/"), 0.5),
        ("/docker/abc", "/docker/abcd", v1(200_000), 2.0),
    ],
)
def test_version_1(tmp_path: Path, mounted: str, path: str, files: dict[str, str], quota: float) -> None:
    root = machine(tmp_path, V1_GROUPS.format(path=path), V1_MOUNT.format(root=mounted), files)
    assert cpu_quota(root) == quota


def test_both_versions_at_once(tmp_path: Path) -> None:
    mounts = V1_MOUNT.format(root="/") + V2_MOUNT.format(root="/", at="/unified")
    files = v1(300_000) | {"unified/cpu.max": "200000 100000\n"}
    assert cpu_quota(machine(tmp_path, V1_GROUPS.format(path="/"), mounts, files)) == 2.0


def test_no_proc_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "cpus", "threads"),
    [("10000", 8, 1), ("100000", 8, 1), ("100001", 8, 2), ("250000", 8, 3), ("800000", 8, 8), ("max", 3, 3),
     ("1600000", 8, 8)],
)  # fmt: skip
def test_the_smaller_of_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    root = machine(tmp_path, "0::/\n", V2_MOUNT.format(root="/", at=""), {"cpu.max": f"{quota} 100000\n"})
    count, reason = threads_to_use(0, root)
    assert count == threads
    assert ("quota" in reason) is (threads < cpus)
    assert threads_to_use(5, root) == (5, "as configured")


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A cgroup of this machine with half a CPU more than one."""
    parents = [Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup")]
    parent = next((p for p in parents if (p / "cgroup.procs").exists()), None)
    if parent is None:
        pytest.skip("this machine has no cgroup file system")
    group = parent / f"llm-grpc-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("50000 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("50000")
        yield group
    except OSError as error:
        pytest.skip(f"this cgroup cannot be limited: {error}")
    finally:
        group.rmdir()


def test_a_process_in_a_limited_cgroup(real_group: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU cannot show a limit of one thread")
    code = f"""
import os
from pathlib import Path
Path({str(real_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
from llm_grpc.cpus import threads_to_use
print(*threads_to_use(), sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    if "Permission" in done.stderr:
        pytest.skip(f"no process can be put into a cgroup here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1|the cgroup's quota is 0.5 of ")
