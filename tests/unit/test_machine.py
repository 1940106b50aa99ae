"""Sizes are read and written as people do."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_grpc import machine
from llm_grpc.machine import (
    available_memory_bytes,
    format_bytes,
    free_disk_bytes,
    parse_bytes,
    total_memory_bytes,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("8GiB", 8 * 2**30),
        ("500 MB", 500 * 10**6),
        ("1.5g", 1_500_000_000),
        ("2kib", 2048),
        ("7B", 7),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "8 apples", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 8GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**50, "1024.0 TiB")],
)
def test_a_size_is_written(count: float, text: str) -> None:
    assert format_bytes(count) == text


CGROUP_FILES = {
    "2": ("memory.max", "memory.current", "memory.stat", "anon 1\ninactive_file 30\nslab 5"),
    "1": (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "inactive_file 1\ntotal_inactive_file 30",
    ),
}


@pytest.mark.parametrize("version", CGROUP_FILES)
@pytest.mark.parametrize(
    ("limit", "used", "total", "available"),
    [
        pytest.param("1000", "600", 1000, 430, id="what others of the container use is gone"),
        pytest.param("1000", "1200", 1000, 0, id="over the limit"),
        pytest.param("max", "600", None, None, id="no limit"),
        pytest.param("9223372036854771712", "600", None, None, id="no limit, as a number"),
        pytest.param("1000", None, 1000, 1000, id="use is not told"),
    ],
)
def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    limit: str,
    used: str | None,
    total: int | None,
    available: int | None,
) -> None:
    limit_file, used_file, stat_file, stat = CGROUP_FILES[version]
    (tmp_path / "memory").mkdir()
    (tmp_path / limit_file).write_text(f"{limit}\n")
    if used is not None:
        (tmp_path / used_file).write_text(f"{used}\n")
        (tmp_path / stat_file).write_text(f"{stat}\n")
    at = {path: tmp_path / path.relative_to("/sys/fs/cgroup") for c in machine._CGROUPS for path in c[:3]}
    moved = tuple(c._replace(limit=at[c.limit], usage=at[c.usage], stat=at[c.stat]) for c in machine._CGROUPS)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16384 kB\nMemAvailable:    8192 kB\n")
    monkeypatch.setattr(machine, "_CGROUPS", moved)
    monkeypatch.setattr(machine, "_MEMINFO", meminfo)
    assert total_memory_bytes() == (total or machine._machine_memory_bytes())
    assert available_memory_bytes() == (8192 * 1024 if available is None else available)


def test_without_proc_all_memory_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUPS", ())
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "nothing")
    assert available_memory_bytes() == total_memory_bytes()


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    assert 0 < available_memory_bytes() <= total_memory_bytes()
    assert free_disk_bytes(tmp_path / "not" / "yet") > 0
