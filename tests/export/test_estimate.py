"""What is said of memory and disk before an export."""

from __future__ import annotations

from pathlib import Path

from llm_grpc.export.estimate import needs_of, say_needs
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.source import Source

GIB = 2**30


def source(num_parameters: int, vocabulary_parameters: int) -> Source:
    return Source("model", Path("model"), num_parameters, vocabulary_parameters)


def test_the_estimates_cover_what_was_measured() -> None:
    """The most of memory that no file backs, of a model of 494 M parameters with a large vocabulary."""
    large = source(494_032_768, 136_134_656)
    for recipe, measured_mib in ((Recipe("fp32"), 2888), (Recipe("int8"), 1865)):
        found = needs_of(large, recipe, 20 * GIB)
        assert measured_mib * 2**20 < found.memory_bytes < 1.25 * measured_mib * 2**20
    assert needs_of(large, Recipe(), 20 * GIB).disk_bytes == 4 * 494_032_768


def test_a_model_larger_than_half_of_the_memory_is_not_copied() -> None:
    huge = source(7_000_000_000, 500_000_000)
    assert needs_of(huge, Recipe(), 24 * GIB).memory_bytes < 5 * GIB
    assert needs_of(huge, Recipe("int8"), 24 * GIB).memory_bytes < 11 * GIB
    assert needs_of(huge, Recipe("bf16"), 24 * GIB).disk_bytes == 6 * 7_000_000_000


def test_the_needs_are_one_line(tmp_path: Path) -> None:
    line = say_needs(source(10**8, 10**7), tmp_path, Recipe())
    assert line.startswith("100.0 M parameters, 381.5 MiB in fp32; needs 381.5 MiB of disk, ")
    assert "of memory, " in line


def test_a_tied_table_is_in_two_stages() -> None:
    tied = source(10**8, 10**7)
    whole, staged = (needs_of(tied, Recipe("int8", stages=stages), GIB) for stages in (1, 3))
    assert staged.disk_bytes - whole.disk_bytes == 10**7
