"""How many threads compute: what is asked for, else what this process may use of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Threads(NamedTuple):
    """A number of threads, and why it is this one."""

    number: int
    reason: str


def threads_to_use(asked: int = 0, root: Path = Path("/")) -> Threads:
    """``asked``, or where that is 0 one for each CPU that this process may use.

    That is the smaller of its affinity and the CPU quota of its cgroups, rounded up: threads beyond the quota
    would only use it up sooner and then all stand still until its next period. ``root`` is where ``/proc``
    and the cgroups are read.
    """
    if asked:
        return Threads(asked, "as configured")
    runnable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    if quota is None or math.ceil(quota) >= runnable:
        return Threads(runnable, f"the CPUs that this process may run on are {runnable}")
    return Threads(max(1, math.ceil(quota)), f"the cgroup's quota is {quota:g} of {runnable} CPUs")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The CPUs' worth of time that the process's cgroup and those above it leave it; None is no limit."""
    return min((quota for group in _groups(root) if (quota := _quota_of(group)) is not None), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """The directories of this process's cgroup and its ancestors, in each hierarchy that may limit CPUs."""
    try:
        own = _own_groups((root / "proc/self/cgroup").read_text())
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        return
    for line in mounts:
        # See proc(5): ... root mount-point options [tags] - type source super-options
        before, _, after = line.partition(" - ")
        (mounted, at), (kind, _, options) = before.split()[3:5], after.split()[:3]
        if kind == "cgroup2":
            group = own.get("")
        elif kind == "cgroup" and "cpu" in options.split(","):
            group = own.get("cpu")
        else:
            continue
        if group is not None:
            yield from _upwards(root / at.lstrip("/"), _below(group, mounted))


def _own_groups(text: str) -> dict[str, str]:
    """The path of the process's group by controller; that of the unified hierarchy by the empty name."""
    lines = (line.split(":", 2) for line in text.splitlines())
    return {controller: path for _, controllers, path in lines for controller in controllers.split(",")}


def _below(group: str, mounted: str) -> PurePosixPath:
    """``group`` relative to the one that is mounted. One that cannot be seen from here counts as that one."""
    path = PurePosixPath(group)
    if ".." in path.parts or not path.is_relative_to(mounted):
        return PurePosixPath()
    return path.relative_to(mounted)


def _upwards(mount: Path, group: PurePosixPath) -> Iterator[Path]:
    return (mount / path for path in (group, *group.parents))


def _quota_of(group: Path) -> float | None:
    """CPU seconds a second, by ``cpu.max`` (version 2) or ``cpu.cfs_*`` (version 1)."""
    try:
        if (unified := group / "cpu.max").exists():
            quota, period = unified.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"; nothing that can be read
        return None
