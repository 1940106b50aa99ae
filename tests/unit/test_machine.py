"""Sizes are read and written as people do."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    assert 0 < available_memory_bytes() <= total_memory_bytes()
    assert free_disk_bytes(tmp_path / "not" / "yet") > 0
