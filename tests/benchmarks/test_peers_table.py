from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.contestants import Format
from benchmarks.peers.limits import GEMM_SHAPES, Machine, limits, read_bandwidth
from benchmarks.peers.rounds import Outcome
from benchmarks.peers.table import tables

MACHINE = Machine(20e9, dict.fromkeys(GEMM_SHAPES, 600e9))
INT8 = Format(1, 1, 4)
TRACE = [(256, 128)] * 32
COST = {"cpu_s": 1.0, "peak_bytes": 3e9}


def _single(name: str, number: int, decode: float) -> Outcome:
    return Outcome(
        name, "single", number, {"prefill_tokens_per_s": 500.0, "decode_tokens_per_s": decode} | COST
    )


def test_a_row_has_median_spread_limit_and_share() -> None:
    outcomes = [_single("a", number, decode) for number, decode in enumerate((20.0, 30.0, 25.0))]

    text = tables(outcomes, {"a": {"decode_tokens_per_s": 50.0}})

    assert text.splitlines()[-1] == "| a | 500 | - | - | 25.0 (20.0..30.0) | 50.0 | 50% | 1.0 | 3000 |"


def test_a_failure_is_in_the_table_beside_what_went_well() -> None:
    outcomes = [_single("a", 0, 20.0), Outcome("a", "single", 1, error="exit code 1: no | luck")]

    row = tables(outcomes, {}).splitlines()[-1]

    assert row.startswith(r"| a (failed in 1 of 2 rounds: exit code 1: no \| luck) | 500 |")


def test_who_always_failed_has_a_row_too() -> None:
    row = tables([Outcome("a", "decode", 0, error="x" * 999)], {}).splitlines()[-1]

    assert "failed in 1 of 1 rounds: xxx" in row
    assert len(row) < 400


def test_rows_keep_the_order_of_the_first_round() -> None:
    outcomes = [_single("b", 0, 1.0), _single("a", 0, 1.0), _single("a", 1, 1.0), _single("b", 1, 1.0)]

    rows = tables(outcomes, {}).splitlines()[-2:]

    assert [row[2] for row in rows] == ["b", "a"]


def test_one_stream_is_bound_by_reading_and_a_prompt_by_multiplying() -> None:
    slow_memory = Machine(10e9, MACHINE.gemm)
    slow_gemm = Machine(20e9, dict.fromkeys(GEMM_SHAPES, 300e9))

    here, memory, gemm = (limits(machine, INT8, TRACE) for machine in (MACHINE, slow_memory, slow_gemm))

    assert memory["decode_tokens_per_s"] == here["decode_tokens_per_s"] / 2
    assert gemm["prefill_tokens_per_s"] == here["prefill_tokens_per_s"] / 2
    # 494 million weights of a byte at 20 GB/s, and a little cache.
    assert 39 < here["decode_tokens_per_s"] < 20e9 / 494e6


@given(st.floats(0.5, 4), st.floats(0.5, 4))
def test_fewer_bytes_never_lower_a_limit(one: float, other: float) -> None:
    small, large = sorted((one, other))

    fewer, more = (limits(MACHINE, Format(size, size, size), TRACE) for size in (small, large))

    assert all(fewer[name] >= more[name] for name in more)


def test_reading_memory_has_a_speed() -> None:
    assert read_bandwidth(threads=2, size=1 << 22, repeats=2) > 1e6
