"""From logits to token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import Sample
from llm_grpc.sampling_params import SamplingParams

Logits = NDArray[np.float32]
Weights = NDArray[np.float64]


def sample_tokens(logits: Logits, samples: Sequence[Sample]) -> list[int]:
    """Choose one token for each row of ``logits`` ``[len(samples), vocabulary]``.

    A row's choice depends on that row, its parameters and its index alone, so that it is the same alone and
    in a batch.
    """
    for row, sample in enumerate(samples):
        if sample.mask:
            words = np.frombuffer(sample.mask.wait(), np.uint32)
            allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: logits.shape[1]]
            logits[row, allowed == 0] = -np.inf
    greedy = logits.argmax(axis=-1)
    return [
        int(greedy[row]) if sample.params.temperature == 0 else _draw(logits[row], sample)
        for row, sample in enumerate(samples)
    ]


def probabilities(logits: Logits, params: SamplingParams) -> Weights:
    """The distribution ``[vocabulary]`` that a token is drawn from: temperature, then top_k, then top_p."""
    weights = _weights(logits, params)
    weights /= weights.sum()
    return weights


def _weights(logits: Logits, params: SamplingParams) -> Weights:
    """Numbers ``[vocabulary]`` in the ratio of the probabilities, the largest of them 1."""
    weights = logits.astype(np.float64)
    weights -= weights.max()
    weights /= params.temperature
    np.exp(weights, out=weights)
    if 0 < params.top_k < logits.size:
        weights[logits < np.partition(logits, -params.top_k)[-params.top_k]] = 0
    if params.top_p < 1:
        _cut_to_nucleus(weights, params.top_p)
    return weights


_CANDIDATES = 1024
"""Largest weights that are sorted first. Most nuclei are among them, and all of a vocabulary takes ten times
as long to sort."""


def _cut_to_nucleus(weights: Weights, top_p: float) -> None:
    """Set to 0 what is outside the fewest largest weights of which ``top_p`` is; of equal ones ids decide."""
    wanted = top_p * weights.sum()
    ranked = _ranked(weights, _CANDIDATES)
    if ranked.sum() < wanted:
        ranked = _ranked(weights, weights.size)
    mass = np.cumsum(ranked)
    num_kept = int(np.count_nonzero(mass - ranked < wanted))
    least = ranked[num_kept - 1]
    equal = np.flatnonzero(weights == least)
    weights[weights < least] = 0
    weights[equal[np.count_nonzero(ranked[:num_kept] == least) :]] = 0


def _ranked(weights: Weights, count: int) -> Weights:
    """The ``count`` largest, largest first."""
    if count < weights.size:
        weights = np.partition(weights, -count)[-count:]
    return np.sort(weights)[::-1]


_BLOCK = 512
"""Weights that are summed before any is looked at. The cumulative sum of a vocabulary takes longer than its
exponentials."""


def _draw(logits: Logits, sample: Sample) -> int:
    """Invert the cumulative distribution in id order, where a rounding error moves its borders least."""
    weights = _weights(logits, sample.params)
    cumulative = np.cumsum(np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK)))
    wanted = uniform(sample) * cumulative[-1]
    block = _first_above(cumulative, wanted)
    start = block * _BLOCK
    before = cumulative[block - 1] if block else 0.0
    return start + _first_above(before + np.cumsum(weights[start : start + _BLOCK]), wanted)


def uniform(sample: Sample) -> float:
    """A number from 0 to below 1 that the seed and the token's index settle.

    It comes from the Philox counter-based generator, keyed by the seed and counted by the index, so that no
    generator state has to follow the request.
    """
    bits = np.random.Philox(key=sample.params.seed, counter=sample.index)
    return float(np.random.Generator(bits).random())


def _first_above(cumulative: Weights, wanted: float) -> int:
    """Where a sum exceeds ``wanted``; a rounding error past the end counts for what reaches the end."""
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    return min(int(np.searchsorted(cumulative, wanted, side="right")), last)
