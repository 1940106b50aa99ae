"""The sampler: the distribution it says, alone or in a batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_grpc.engine.step_plan import Sample
from llm_grpc.runtime.sampler import Logits, probabilities, sample_tokens
from llm_grpc.sampling_params import SamplingParams

logits_rows = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.just(23)), elements=st.floats(-20, 20, width=32)
)
params_st = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 2)),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 40),
    seed=st.integers(0, 2**64 - 1),
)


def sample(params: SamplingParams, index: int = 0) -> Sample:
    return Sample(request_id=1, row=0, index=index, params=params)


def reference(logits: Logits, params: SamplingParams) -> list[float]:
    """The same distribution by the plainest means."""
    weights = {
        i: float(np.exp((float(x) - float(logits.max())) / params.temperature)) for i, x in enumerate(logits)
    }
    ranked = sorted(weights, key=lambda i: (-weights[i], i))
    if params.top_k:
        ranked = ranked[: params.top_k]
    total, kept, mass = sum(weights[i] for i in ranked), [], 0.0
    for i in ranked:
        kept.append(i)
        mass += weights[i] / total
        if mass >= params.top_p:
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(logits.size)]


@given(logits=arrays(np.float32, 23, elements=st.floats(-9, 9, width=32), unique=True), params=params_st)
def test_probabilities_are_the_reference_ones(logits: Logits, params: SamplingParams) -> None:
    if params.temperature == 0:
        return
    found = probabilities(logits, params)
    wanted = np.array(reference(logits, params))
    # A token that a rounding error parts from top_p may fall on either side; its mass is all that moves.
    border = np.abs(found - wanted).max() > 1e-9
    mass = np.sort(wanted[wanted > 0])
    assert not border or mass[0] < 1e-6 or abs(np.cumsum(mass[::-1]) - params.top_p).min() < 1e-9


@given(logits=logits_rows, params=st.lists(params_st, min_size=5, max_size=5), index=st.integers(0, 9))
def test_alone_is_as_in_a_batch(logits: Logits, params: list[SamplingParams], index: int) -> None:
    samples = [sample(p, index) for p in params[: len(logits)]]
    together = sample_tokens(logits, samples)
    alone = [sample_tokens(logits[i : i + 1], [s])[0] for i, s in enumerate(samples)]
    assert together == alone


@given(logits=logits_rows, params=params_st)
def test_greedy_is_the_argmax_and_draws_are_possible_tokens(logits: Logits, params: SamplingParams) -> None:
    token = sample_tokens(logits[:1], [sample(params)])[0]
    if params.temperature == 0:
        assert token == int(np.argmax(logits[0]))
    else:
        assert probabilities(logits[0], params)[token] > 0


def test_frequencies_follow_the_distribution() -> None:
    """Chi-square over 20,000 seeds; the bound is the 0.9999 quantile for 9 degrees of freedom."""
    logits = np.linspace(-1, 2, 10, dtype=np.float32)
    params = [SamplingParams(max_tokens=1, temperature=0.9, seed=seed) for seed in range(20_000)]
    drawn = [sample_tokens(logits[None], [sample(p)])[0] for p in params]
    expected = probabilities(logits, params[0]) * len(drawn)
    found = np.bincount(drawn, minlength=10)
    assert ((found - expected) ** 2 / expected).sum() < 33.7


def test_indexes_of_one_seed_draw_independently() -> None:
    params = SamplingParams(max_tokens=1, temperature=1.0, seed=7)
    flat = np.zeros((1, 1000), np.float32)
    drawn = {sample_tokens(flat, [sample(params, index)])[0] for index in range(50)}
    assert len(drawn) > 40


@given(
    logits=arrays(np.float32, 1500, elements=st.integers(-60, 60)),
    scale=st.floats(0.01, 1),
    top_p=st.floats(0.01, 0.999),
)
def test_a_nucleus_is_cut_from_a_vocabulary_as_from_a_sorted_one(
    logits: Logits, scale: float, top_p: float
) -> None:
    """More tokens than are sorted at first, many of them equal, whether few or nearly all are kept."""
    logits *= np.float32(scale)
    whole = probabilities(logits, SamplingParams(1, temperature=1.0))
    order = np.argsort(-whole, kind="stable")
    before = np.cumsum(whole[order]) - whole[order]
    kept = set(
        np.flatnonzero(probabilities(logits, SamplingParams(1, temperature=1.0, top_p=top_p))).tolist()
    )
    wanted = set(order[before < top_p].tolist())
    # A token that a rounding error parts from top_p may fall on either side.
    assert kept == wanted or np.abs(before - top_p).min() < 1e-12
    assert kept <= set(order[: max(len(wanted), len(kept))].tolist()), "of equal ones the first"


@given(
    logits=arrays(np.float32, 1500, elements=st.floats(-9, 9, width=32)),
    params=params_st.filter(lambda params: params.temperature > 0),
)
def test_a_draw_inverts_the_cumulative_sum(logits: Logits, params: SamplingParams) -> None:
    token = sample_tokens(logits[None], [sample(params)])[0]
    weights = probabilities(logits, params)
    uniform = np.random.Generator(np.random.Philox(key=params.seed, counter=0)).random()
    assert weights[token] > 0
    assert weights[:token].sum() <= uniform + 1e-12
    assert weights[: token + 1].sum() >= uniform - 1e-12
