"""How likely tokens are by a model's own logits, whatever the sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import Sample, Score, StepPlan, StepResult, TokenScore
from llm_grpc.runtime.sampler import sample_tokens

Row = NDArray[np.float32]
"""Raw logits ``[vocabulary]``."""


def step_result(plan: StepPlan, logits: NDArray[np.float32]) -> StepResult:
    """What a run of ``plan`` found; row i of ``logits`` is that of ``plan.logit_rows[i]``.

    Raises:
        ValueError: a mask has no token.
    """
    num_samples = len(plan.samples)
    found = samples_result(plan.samples, logits[:num_samples])
    return replace(found, scores=scores(logits[num_samples:], plan.scores)) if plan.scores else found


def samples_result(samples: Sequence[Sample], logits: NDArray[np.float32]) -> StepResult:
    """A token for each row of ``logits``, and its probability where the sample asks for it.

    Raises:
        ValueError: a mask has no token.
    """
    tokens = sample_tokens(logits, samples)
    logprobs = {
        place: token_score(logits[place], tokens[place], sample.params.num_logprobs)
        for place, sample in enumerate(samples)
        if sample.params.num_logprobs is not None
    }
    return StepResult(tokens, logprobs)


def scores(logits: NDArray[np.float32], asked: Sequence[Score]) -> tuple[TokenScore, ...]:
    """One for each that is asked, from a row for each."""
    return tuple(token_score(row, one.token, one.num_top) for row, one in zip(logits, asked, strict=True))


def token_score(logits: Row, token: int, num_top: int) -> TokenScore:
    """The log-softmax of ``logits`` at ``token``, and the ``num_top`` largest; summed in fp64."""
    found = logits.astype(np.float64)
    found -= found.max()
    found -= np.log(np.exp(found).sum())
    return TokenScore(float(found[token]), _top(found, num_top))


def _top(logprobs: NDArray[np.float64], count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` largest with their ids, largest first, of equal ones the lower id first."""
    count = min(count, logprobs.size)
    if not count:
        return ()
    least = np.partition(logprobs, -count)[-count]
    ids = np.flatnonzero(logprobs >= least)
    ranked = ids[np.argsort(-logprobs[ids], kind="stable")][:count]
    return tuple((int(i), float(logprobs[i])) for i in ranked)
