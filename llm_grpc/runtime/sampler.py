"""From logits to token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import Sample
from llm_grpc.runtime.adjustment import Logits, adjusted, changes_logits
from llm_grpc.runtime.truncation import (
    Weights,
    cut_below_share,
    cut_to_likeliest,
    cut_to_nucleus,
    cut_to_typical,
)
from llm_grpc.sampling_params import SamplingParams


def sample_tokens(logits: NDArray[np.float32], samples: Sequence[Sample]) -> list[int]:
    """Choose one token for each row of ``logits`` ``[len(samples), vocabulary]``.

    A row's choice depends on that row and its sample alone, so that it is the same alone and in a batch.

    Raises:
        ValueError: a mask has no token.
    """
    likeliest: list[int] = logits.argmax(axis=-1).tolist()
    return [
        best if sample.params.temperature == 0 and not changes_logits(sample) else _choose(row, sample)
        for best, row, sample in zip(likeliest, logits, samples, strict=True)
    ]


def probabilities(logits: Logits, sample: Sample) -> Weights:
    """The distribution ``[vocabulary]`` that a token is drawn from; the temperature is not 0.

    Masks, bans, bias and penalties change the logits, the temperature divides them, and then top_k, top_p,
    min_p and typical_p, in this order, each leave out tokens of what is left.
    """
    weights = _weights(adjusted(logits, sample), sample.params)
    weights /= weights.sum()
    return weights


def _choose(logits: Logits, sample: Sample) -> int:
    row = adjusted(logits, sample)
    if sample.params.temperature == 0:
        return int(row.argmax())
    return _drawn(_weights(row, sample.params), uniform(sample))


def _weights(logits: Logits, params: SamplingParams) -> Weights:
    """Numbers ``[vocabulary]`` in the ratio of the probabilities."""
    weights = logits.astype(np.float64)
    weights -= weights.max()
    weights /= params.temperature
    np.exp(weights, out=weights)
    cut_to_likeliest(weights, logits, params.top_k)
    cut_to_nucleus(weights, params.top_p)
    cut_below_share(weights, params.min_p)
    cut_to_typical(weights, params.typical_p)
    return weights


_BLOCK = 512
"""Weights that are summed before any is looked at. The cumulative sum of a vocabulary takes longer than its
exponentials."""


def _drawn(weights: Weights, share: float) -> int:
    """Invert the cumulative distribution in id order, where a rounding error moves its borders least."""
    cumulative = np.cumsum(np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK)))
    wanted = share * cumulative[-1]
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
