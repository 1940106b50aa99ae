"""Which tokens a draw is from: top_k, top_p, min_p and typical_p on weights.

Weights are fp64 ``[vocabulary]`` in the ratio of probabilities. Each function sets to 0, in place, those of
tokens that it leaves out, and keeps at least one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm_grpc.runtime.adjustment import Logits

Weights = NDArray[np.float64]

CANDIDATES = 1024
"""Largest weights that are sorted first. Most nuclei are among them, and all of a vocabulary takes ten times
as long to sort."""


_MORE = 8
"""Times as many are sorted where the candidates were too few."""


def cut_to_likeliest(weights: Weights, logits: Logits, top_k: int) -> None:
    """Keep the ``top_k`` largest logits and what equals the least of them."""
    if 0 < top_k < logits.size:
        weights[logits < np.partition(logits, -top_k)[-top_k]] = 0


def cut_to_nucleus(weights: Weights, top_p: float, candidates: int = CANDIDATES) -> None:
    """Keep the fewest largest weights of which ``top_p`` is; of equal ones lower ids go first.

    All are sorted where that is not among the ``candidates`` largest; the result is the same.
    """
    if top_p >= 1:
        return
    wanted = top_p * weights.sum()
    ranked = _ranked(weights, candidates)
    mass = np.cumsum(ranked)
    if mass[-1] < wanted:
        ranked = _ranked(weights, weights.size)
        mass = np.cumsum(ranked)
    num_kept = min(int(np.searchsorted(mass, wanted)) + 1, ranked.size)
    least = ranked[num_kept - 1]
    equal = np.flatnonzero(weights == least)
    weights[weights < least] = 0
    weights[equal[np.count_nonzero(ranked[:num_kept] == least) :]] = 0


def cut_below_share(weights: Weights, min_p: float) -> None:
    """Keep weights that are at least ``min_p`` of the largest."""
    if min_p > 0:
        weights[weights < min_p * weights.max()] = 0


def cut_to_typical(weights: Weights, typical_p: float, candidates: int = CANDIDATES) -> None:
    """Keep the fewest tokens of which ``typical_p`` is, by how near their surprise is to the expected one.

    Surprise is ``-log p``, and what is expected of it the entropy of the weights; of equally near ones lower
    ids go first (locally typical sampling, Meister et al. 2022). The ``candidates`` nearest are sorted first,
    and more where these are too few; the result is the same.
    """
    if typical_p >= 1:
        return
    tokens = np.flatnonzero(weights)
    shares = weights[tokens]
    total = shares.sum()
    surprise = np.log(total) - np.log(shares)
    shares /= total
    distance = np.abs(surprise - np.dot(shares, surprise))
    near = _nearest(distance, candidates)
    while (mass := np.cumsum(shares[near]))[-1] < typical_p and near.size < distance.size:
        near = _nearest(distance, near.size * _MORE)
    kept = tokens[near[: int(np.searchsorted(mass, typical_p)) + 1]]
    kept_weights = weights[kept]
    weights[:] = 0
    weights[kept] = kept_weights


def _nearest(distance: Weights, count: int) -> NDArray[np.int64]:
    """Where the ``count`` least and what equals the last of them are, least first, then by place."""
    if count < distance.size:
        places = np.flatnonzero(distance <= np.partition(distance, count - 1)[count - 1])
    else:
        places = np.arange(distance.size)
    return places[np.argsort(distance[places], kind="stable")]


def _ranked(weights: Weights, count: int) -> Weights:
    """The ``count`` largest, largest first."""
    if count < weights.size:
        weights = np.partition(weights, -count)[-count:]
    return np.sort(weights)[::-1]
