"""What is said of memory and disk before an export."""

from __future__ import annotations

from pathlib import Path

from llm_grpc.export.estimate import needs_of, say_needs
from llm_grpc.export.source import Source

GIB = 2**30


def source(num_parameters: int, vocabulary_parameters: int) -> Source:
    return Source("model", Path("model"), num_parameters, vocabulary_parameters)


def test_the_estimates_cover_what_was_measured() -> None:
    small, large = needs_of(source(100_100_000, 24_600_000)), needs_of(source(494_032_768, 136_134_656))
    assert 2.58 * GIB < small.memory_bytes < 1.2 * 2.58 * GIB
    assert 5.54 * GIB < large.memory_bytes < 1.2 * 5.54 * GIB
    assert 0.46 * GIB < small.disk_bytes < 1.1 * 0.46 * GIB
    assert 4.67 * GIB < large.disk_bytes < 1.1 * 4.67 * GIB


def test_the_needs_are_one_line(tmp_path: Path) -> None:
    line = say_needs(source(10**8, 10**7), tmp_path)
    assert line.startswith("100.0 M parameters, 381.5 MiB in fp32; needs 419.6 MiB of disk, ")
    assert "of memory, " in line
