"""How much memory and disk this machine has, and how sizes are written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?|)B?\s*", re.IGNORECASE)


class _Cgroup(NamedTuple):
    """Where a version of control groups says a container's limit, what it uses, and how much of that are
    pages of files that can go.
    """

    limit: Path
    usage: Path
    stat: Path
    reclaimable: str


_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_1 = _CGROUP / "memory"
_CGROUPS = (
    _Cgroup(_CGROUP / "memory.max", _CGROUP / "memory.current", _CGROUP / "memory.stat", "inactive_file"),
    _Cgroup(
        _CGROUP_1 / "memory.limit_in_bytes",
        _CGROUP_1 / "memory.usage_in_bytes",
        _CGROUP_1 / "memory.stat",
        "total_inactive_file",
    ),
)


_MEMINFO = Path("/proc/meminfo")


def total_memory_bytes() -> int:
    """The memory of the machine, or of the container where its limit is lower."""
    return min((_machine_memory_bytes(), *(limit for limit, _ in _containers())))


def available_memory_bytes() -> int:
    """What can be had without swapping, by a container without being killed for it; all of the memory where
    the system does not say.
    """
    left = (max(0, limit - used) for limit, used in _containers())
    return min((_machine_memory_bytes(), *left, *_numbers(_MEMINFO, "MemAvailable:", 1024)))


def _machine_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _containers() -> Iterator[tuple[int, int]]:
    """Limit and use of the container that this runs in, in bytes; nothing where there is no limit."""
    for files in _CGROUPS:
        for limit in _numbers(files.limit):
            reclaimable = sum(_numbers(files.stat, files.reclaimable))
            yield limit, max(0, sum(_numbers(files.usage)) - reclaimable)


def _numbers(path: Path, field: str = "", unit: int = 1) -> Iterator[int]:
    """The number that a file of the system says, or says of a field; nothing where it says none."""
    with suppress(OSError, ValueError):  # no such file; "max"
        for line in path.read_text(encoding="ascii").splitlines():
            name, number = (line.split() if field else ("", line))[:2]
            if name == field:
                yield int(number) * unit


def free_disk_bytes(path: Path) -> int:
    """Free bytes where ``path`` is, or will be."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def parse_bytes(text: str) -> int:
    """``8GiB``, ``500 MB``, ``1.5G`` or a plain number of bytes.

    Raises:
        ValueError: ``text`` is none of these.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size such as 8GiB or 500MB")
    unit = match[2][:1].upper() + match[2][1:].lower()
    return int(float(match[1]) * _UNITS[unit])


def format_bytes(count: float) -> str:
    """``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
