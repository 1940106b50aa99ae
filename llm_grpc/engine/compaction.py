"""Where a decoding request should move, so that the decode rows of a step lie closer together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

MIN_TOKENS_LEFT = 8
"""A request with fewer tokens to go stays: copying its slot costs as much as a few steps with a hole."""


def best_move(
    decoding: Sequence[int],
    free: Collection[int],
    may_move: Callable[[int], bool],
    last_used: Callable[[int], int],
) -> tuple[int, int] | None:
    """The slot to move and the one to move it to, or None.

    A step computes a row for every slot from the lowest of ``decoding`` (ascending) to the highest, so one
    of these two moves into a free slot between them: an empty one (``last_used`` -1) if there is any, then
    the move that leaves fewest rows, then the slot used longest ago.
    """
    if not decoding or decoding[-1] - decoding[0] + 1 == len(decoding):
        return None
    moves = (
        (last_used(hole) == -1, saved, -last_used(hole), source, hole)
        for hole in free
        for source, saved in _savings(decoding, hole)
        if may_move(source)
    )
    best = max(moves, default=None)
    return best and best[3:]


def _savings(decoding: Sequence[int], hole: int) -> Iterator[tuple[int, int]]:
    """Each end that could move to ``hole``, with the rows that this saves."""
    low, high = decoding[0], decoding[-1]
    if low < hole < high:
        yield low, min(decoding[1], hole) - low
        yield high, high - max(decoding[-2], hole)
