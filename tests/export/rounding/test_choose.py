"""The worst matrices get more bits, within the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.export.rounding.choose import MEAN_BITS, choose, mean_bits

ERRORS = {"a": 0.02, "b": 0.09, "c": 0.05}


def picked(budget: float, limit: float = 0.0, **sizes: int) -> str:
    formats = choose(ERRORS, {"a": 1, "b": 1, "c": 1} | sizes, "blocks4x32", "blocks8", budget, limit)
    return "".join(name for name, found in formats.items() if found == "blocks8")


@pytest.mark.parametrize(
    ("budget", "names"), [(5.125, ""), (6.1, ""), (6.2, "b"), (7.3, "bc"), (8.25, "abc")]
)
def test_the_worst_come_first(budget: float, names: str) -> None:
    assert picked(budget) == names


def test_what_is_too_large_for_the_rest_is_passed_over() -> None:
    assert picked(6.2, b=10) == "ac"


def test_what_is_within_the_limit_is_left() -> None:
    assert picked(32.0, limit=0.03) == "bc"


def test_a_budget_below_the_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5\.0 bits per weight: blocks4x32 takes 5\.125"):
        picked(5.0)


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1),
    st.floats(8, 32),
)
def test_the_budget_holds(matrices: dict[str, tuple[float, int]], budget: float) -> None:
    errors = {name: error for name, (error, _) in matrices.items()}
    sizes = {name: size for name, (_, size) in matrices.items()}
    formats = choose(errors, sizes, "int8", "fp32", budget)
    assert MEAN_BITS["int8"] <= mean_bits(formats, sizes) <= budget * (1 + 1e-9)
