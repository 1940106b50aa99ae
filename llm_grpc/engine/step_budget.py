"""How much one step may compute, from how long steps take on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TILE = 16
"""Rows that matrix kernels compute together: mixed steps are cut to a whole number of them."""

MAX_SLOWDOWN = 3.0
"""How much longer a step of decode rows may take because a prompt is prefilled beside them. Much less costs
throughput: a few tokens take nearly as long as a tile of them."""

MAX_GUESS_SLOWDOWN = 1.25
"""How much longer a step of one row may take because guesses are checked with it."""

_SWEEPS = 3
"""Times that each size is timed."""

_LEAST_TOKENS = TILE
"""Of a prompt in a mixed step, however long it takes: a prompt has to get on."""


@dataclass(frozen=True)
class StepBudget:
    """``mixed_tokens`` of a prompt beside decoding requests; ``num_guesses`` at what a lone one says next."""

    mixed_tokens: int
    num_guesses: int = 0

    def beside(self, num_decoding: int) -> int:
        """Prompt tokens beside so many decode rows: what makes whole tiles, unless that is less than half."""
        tiled = (num_decoding + self.mixed_tokens) // TILE * TILE - num_decoding
        return tiled if 2 * tiled >= self.mixed_tokens else self.mixed_tokens


def measured_budget(seconds: Callable[[int, int], float], num_rows: int, chunk_tokens: int) -> StepBudget:
    """The largest budget within the limits above.

    ``seconds`` runs a step of a number of decode rows and of chunk tokens. ``num_rows`` is the most rows that
    it is to be tried with, 0 if nothing can decode beside a chunk, and ``chunk_tokens`` the most tokens.
    """
    mixed = _LEAST_TOKENS
    if num_rows:
        sizes = doublings(_LEAST_TOKENS, chunk_tokens)
        mixed = _largest(lambda size: seconds(num_rows, size), 0, sizes, MAX_SLOWDOWN) or mixed
    checked = doublings(2, min(TILE, chunk_tokens))
    guesses = _largest(lambda size: seconds(0, size), 1, checked, MAX_GUESS_SLOWDOWN)
    return StepBudget(mixed, guesses - 1)


def _largest(seconds: Callable[[int], float], base: int, sizes: Iterator[int], slowdown: float) -> int:
    """The largest of ascending ``sizes`` that takes at most ``slowdown`` times as long as ``base``; or that.

    All are timed in turn, several times, and the shortest time of each counts: what else the machine does
    makes steps longer, never shorter, and it does it for longer than one size is timed.
    """
    tried, took = (base, *sizes), dict[int, float]()
    for _ in range(_SWEEPS):
        for size in tried:
            took[size] = min(seconds(size), took.get(size, math.inf))
            if took[size] > slowdown * took[base]:
                break
    return max(size for size in took if took[size] <= slowdown * took[base])


def doublings(first: int, last: int) -> Iterator[int]:
    """``first`` doubled again and again up to ``last``, and what lies in the middle between two of these."""
    while first <= last:
        yield first
        if first % 2 == 0 and first * 3 // 2 <= last:
            yield first * 3 // 2
        first *= 2
