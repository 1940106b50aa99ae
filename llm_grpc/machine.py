"""How much memory and disk this machine has, and how sizes are written."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?|)B?\s*", re.IGNORECASE)

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def total_memory_bytes() -> int:
    """The memory of the machine, or of the container where its limit is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no such file; "max"
            continue
    return total


def available_memory_bytes() -> int:
    """What new processes can have without swapping; all of the memory where the system does not say."""
    total = total_memory_bytes()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return total
    kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return min(total, int(kibibytes) * 1024)


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
