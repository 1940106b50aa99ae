"""How much one step may compute, from how long steps take on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

TILE = 16
"""Rows that matrix kernels compute together: mixed steps are cut to a whole number of them."""

MAX_SLOWDOWN = 3.0
"""How much longer a step of decode rows may take because a prompt is prefilled beside them. Much less costs
throughput: a few tokens take nearly as long as a tile of them."""

MAX_GUESS_SLOWDOWN = 1.25
"""How much longer a step of one row may take because guesses are checked with it."""

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
    mixed, guesses = _LEAST_TOKENS, 1
    if num_rows:
        longest = MAX_SLOWDOWN * seconds(num_rows, 0)
        within = takewhile(lambda n: seconds(num_rows, n) <= longest, doublings(_LEAST_TOKENS, chunk_tokens))
        mixed = max(within, default=mixed)
    longest_check = MAX_GUESS_SLOWDOWN * seconds(0, 1)
    checked = takewhile(lambda n: seconds(0, n) <= longest_check, doublings(2, min(TILE, chunk_tokens)))
    return StepBudget(mixed, max(checked, default=guesses) - 1)


def doublings(first: int, last: int) -> Iterator[int]:
    """``first`` doubled again and again up to ``last``, and what lies in the middle between two of these."""
    while first <= last:
        yield first
        if first % 2 == 0 and first * 3 // 2 <= last:
            yield first * 3 // 2
        first *= 2
