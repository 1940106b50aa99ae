"""Which matrices get more bits than the others."""

from __future__ import annotations

from collections.abc import Mapping

from llm_grpc.export.rounding import blocks, int8

MEAN_BITS: dict[str, float] = {
    "int8": int8.MEAN_BITS,
    "fp32": 32.0,
} | {name: layout.mean_bits for name, layout in blocks.LAYOUTS.items()}
"""Bits per weight of a format, with its scales and zero points."""


def mean_bits(formats: Mapping[str, str], sizes: Mapping[str, int]) -> float:
    """Of all weights, when each matrix has the format that is said."""
    return sum(MEAN_BITS[formats[name]] * size for name, size in sizes.items()) / sum(sizes.values())


def choose(
    errors: Mapping[str, float],
    sizes: Mapping[str, int],
    low: str,
    high: str,
    budget: float,
    limit: float = 0.0,
) -> dict[str, str]:
    """Give `high` to the matrices of the largest error in `low`, until `budget` bits per weight are spent.

    `errors` holds the relative output error of every matrix in `low`; one of an error of at most `limit`
    keeps it. One too large for what is left is passed over.

    Raises:
        ValueError: the budget is less than what every matrix in `low` takes.
    """
    formats = dict.fromkeys(errors, low)
    total = sum(sizes[name] for name in errors)
    left = (budget - MEAN_BITS[low]) * total
    if left < 0:
        raise ValueError(f"a budget of {budget} bits per weight: {low} takes {MEAN_BITS[low]}")
    for name in sorted(errors, key=lambda name: (-errors[name], name)):
        cost = (MEAN_BITS[high] - MEAN_BITS[low]) * sizes[name]
        if errors[name] > limit and cost <= left:
            formats[name], left = high, left - cost
    return formats
