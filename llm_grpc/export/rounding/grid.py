"""The levels that a block of weights is rounded to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_WITHOUT_ZERO = (1.15, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8)
_WITH_ZERO = (1.0, 1.04, 0.96, 0.92, 0.88, 0.84, 0.8)
"""Shares of the range that a block's levels may span: a narrower one is finer and cuts off the extremes."""


@dataclass(frozen=True)
class Grid:
    """Levels `(code - zero) * scale` for the codes 0 to `top`; scale and zero are float32 [N], a column's."""

    scale: Floats
    zero: Floats
    top: int

    def codes(self, weights: Floats) -> Floats:
        """The nearest codes, whole numbers in float32, of weights [..., N]."""
        found = weights / self.scale
        found += self.zero
        return np.clip(np.rint(found, out=found), 0, self.top, out=found)

    def values(self, codes: Floats) -> Floats:
        """What codes [..., N] stand for."""
        found: Floats = (codes - self.zero) * self.scale
        return found


def column_grid(weights: Floats) -> Grid:
    """Levels -127 to 127 over a column's largest magnitude. Weights are [K, N]."""
    scale = _positive(np.abs(weights).max(0) / 127)
    return Grid(scale, np.full_like(scale, 127), 254)


def block_grid(block: Floats, bits: int, has_zero: bool, importance: Floats) -> Grid:
    """The levels of least squared error for a block of weights [B, N], rows weighted by importance [B].

    Spans are tried in turn; each scale is then refitted to its codes by least squares, as k-quants do
    (llama.cpp).
    """
    weight = importance[:, None]
    best: Grid | None = None
    least = np.full(block.shape[1], np.inf, np.float32)
    for grid in _spans(block, bits, has_zero):
        fitted = _refit(grid, block, weight)
        error = (weight * np.square(fitted.values(fitted.codes(block)) - block)).sum(0)
        best, least = _better(best, least, fitted, error), np.minimum(least, error)
    assert best is not None
    return best


def _spans(block: Floats, bits: int, has_zero: bool) -> Iterator[Grid]:
    top = 2**bits - 1
    if not has_zero:
        # The extreme of the largest magnitude lies on the lowest code, which has no counterpart above.
        extreme = np.take_along_axis(block, np.abs(block).argmax(0)[None], 0)[0] / -(2 ** (bits - 1))
        zero = np.full_like(extreme, 2 ** (bits - 1))
        yield from (Grid(_nonzero(extreme * np.float32(share)), zero, top) for share in _WITHOUT_ZERO)
        return
    low, high = np.minimum(block.min(0), 0), np.maximum(block.max(0), 0)
    zero = np.clip(np.rint(-low / _positive((high - low) / top)), 0, top)
    for share in _WITH_ZERO:
        yield Grid(_positive((high - low) * np.float32(share / top)), zero, top)


def _refit(grid: Grid, block: Floats, weight: Floats) -> Grid:
    steps = grid.codes(block) - grid.zero
    weighted = weight * steps
    square = (weighted * steps).sum(0)
    scale = (weighted * block).sum(0) / np.where(square > 0, square, 1)
    return Grid(np.where(scale == 0, grid.scale, scale).astype(np.float32), grid.zero, grid.top)


def _better(best: Grid | None, least: Floats, other: Grid, error: Floats) -> Grid:
    if best is None:
        return other
    is_better = error < least
    scale = np.where(is_better, other.scale, best.scale)
    return Grid(scale, np.where(is_better, other.zero, best.zero), best.top)


def _positive(scale: Floats) -> Floats:
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _nonzero(scale: Floats) -> Floats:
    return np.where(scale == 0, 1, scale).astype(np.float32)
