"""From logits to token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import Sample
from llm_grpc.sampling_params import SamplingParams

Logits = NDArray[np.float32]


def sample_tokens(logits: Logits, samples: Sequence[Sample]) -> list[int]:
    """Choose one token for each row of ``logits`` ``[len(samples), vocabulary]``.

    A row's choice depends on that row, its parameters and its index alone, so that it is the same alone and
    in a batch.
    """
    greedy = logits.argmax(axis=-1)
    return [
        int(greedy[row]) if sample.params.temperature == 0 else _draw(logits[row], sample)
        for row, sample in enumerate(samples)
    ]


def probabilities(logits: Logits, params: SamplingParams) -> NDArray[np.float64]:
    """The distribution ``[vocabulary]`` that a token is drawn from: temperature, then top_k, then top_p."""
    scaled = logits.astype(np.float64) / params.temperature
    if 0 < params.top_k < scaled.size:
        scaled[scaled < np.partition(scaled, -params.top_k)[-params.top_k]] = -np.inf
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    if params.top_p < 1:
        weights[_outside_nucleus(weights, params.top_p)] = 0
        weights /= weights.sum()
    return weights


def _outside_nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    return order[before >= top_p]


def _draw(logits: Logits, sample: Sample) -> int:
    """Invert the cumulative distribution in id order, where a rounding error moves its borders least.

    The uniform number comes from the Philox counter-based generator, keyed by the seed and counted by the
    token's index, so that no generator state has to follow the request.
    """
    cumulative = np.cumsum(probabilities(logits, sample.params))
    bits = np.random.Philox(key=sample.params.seed, counter=sample.index)
    uniform = np.random.Generator(bits).random() * cumulative[-1]
    return int(np.searchsorted(cumulative, uniform, side="right"))
