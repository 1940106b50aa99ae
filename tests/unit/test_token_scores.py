"""Probabilities that are told are the model's own, whatever a request changes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import Sample, Score, StepPlan, TokenScore
from llm_grpc.runtime.sampler import sample_tokens
from llm_grpc.runtime.token_scores import step_result, token_score
from llm_grpc.sampling_params import SamplingParams

VOCABULARY = 37

rows_st = st.one_of(
    arrays(np.float32, VOCABULARY, elements=st.floats(-60, 60, width=32)),
    arrays(np.float32, VOCABULARY, elements=st.integers(-3, 3)),
)


def reference(logits: NDArray[np.float32], token: int, num_top: int) -> TokenScore:
    """By Python's floats, a sum without rounding, and a sort of everything."""
    row = [float(x) for x in logits]
    largest = max(row)
    total = largest + math.log(math.fsum(math.exp(x - largest) for x in row))
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:num_top]
    return TokenScore(row[token] - total, tuple((i, row[i] - total) for i in order))


@given(rows_st, st.integers(0, VOCABULARY - 1), st.integers(0, VOCABULARY + 3))
def test_a_score_is_the_reference_s(logits: NDArray[np.float32], token: int, num_top: int) -> None:
    found, wanted = token_score(logits, token, num_top), reference(logits, token, num_top)
    assert abs(found.logprob - wanted.logprob) < 1e-12 * max(1, abs(wanted.logprob))
    assert len(found.top) == min(num_top, VOCABULARY)
    for (_, logprob), (_, told) in zip(found.top, wanted.top, strict=True):
        assert abs(logprob - told) < 1e-12 * max(1, abs(told))
    # Where logits are nearly equal their logarithms of probabilities may be equal: then ids decide.
    assert list(found.top) == sorted(found.top, key=lambda one: (-one[1], one[0]))
    gaps = np.diff(np.unique(logits.astype(np.float64)))
    if (gaps > 1e-9).all():
        assert [token for token, _ in found.top] == [token for token, _ in wanted.top]
    assert all(told == found.logprob for which, told in found.top if which == token)


def test_tokens_that_are_impossible_have_no_probability() -> None:
    logits = np.array([0, -np.inf, 0, -np.inf], np.float32)
    found = token_score(logits, 1, 3)
    assert found.logprob == -math.inf
    assert found.top == ((0, math.log(0.5)), (2, math.log(0.5)), (1, -math.inf))


def test_a_large_vocabulary_is_summed_without_losing_its_tail() -> None:
    """In fp32 so many small numbers beside a large one would be lost."""
    logits = np.full(150_000, -17, np.float32)
    logits[5] = 0
    wanted = -math.log1p(149_999 * math.exp(-17))
    assert abs(token_score(logits, 5, 0).logprob - wanted) < 1e-15


def test_what_a_request_changes_does_not_change_what_is_told() -> None:
    """The chosen token is the one that the request's rules choose; its probability is the model's."""
    logits = np.random.default_rng(0).normal(0, 3, (4, VOCABULARY)).astype(np.float32)
    best = int(logits[0].argmax())
    params = SamplingParams(1, num_logprobs=2)
    kinds = [
        replace(params, banned_token_ids=(best,)),
        replace(params, temperature=0.3, top_k=1, logit_bias=((4, 100.0),)),
        replace(params, num_logprobs=None),
        replace(params, num_logprobs=0, repetition_penalty=5.0),
    ]
    samples = tuple(Sample(i, i, 0, kind, (best,), (1, 2)) for i, kind in enumerate(kinds))
    found = step_result(StepPlan((), (), samples), logits)
    assert list(found.tokens) == sample_tokens(logits, samples)
    assert found.tokens[0] != best
    assert found.tokens[1] == 4
    assert found.logprobs == {
        place: token_score(logits[place], found.tokens[place], num_top)
        for place, num_top in ((0, 2), (1, 2), (3, 0))
    }
    assert found.logprobs[0].top[0][0] == best, "of which it is said how likely it was"
    assert found.logprobs[3].top == ()


def test_scores_are_of_the_rows_behind_those_of_samples() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (5, VOCABULARY)).astype(np.float32)
    samples = (Sample(1, 9, 0, SamplingParams(1)), Sample(2, 4, 0, SamplingParams(1, num_logprobs=1)))
    scores = (Score(1, 3, 7), Score(1, 4, 8, 3), Score(2, 4, 0, 1))
    plan = StepPlan((), (), samples, scores=scores)
    assert plan.logit_rows == (9, 4, 3, 4, 4)
    found = step_result(plan, logits)
    assert len(found.tokens) == 2
    assert found.scores == (
        token_score(logits[2], 7, 0),
        token_score(logits[3], 8, 3),
        token_score(logits[4], 0, 1),
    )
    nothing = step_result(StepPlan((), (), (), scores=scores[:1]), logits[2:3])
    assert (list(nothing.tokens), nothing.logprobs, nothing.scores) == ([], {}, found.scores[:1])
