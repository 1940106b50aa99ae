"""The sampler: the distribution it says, alone or in a batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import Sample
from llm_grpc.runtime.adjustment import adjusted
from llm_grpc.runtime.sampler import probabilities, sample_tokens
from llm_grpc.runtime.truncation import Weights, cut_to_nucleus, cut_to_typical
from llm_grpc.sampling_params import SamplingParams
from tests.unit import sampling_reference
from tests.unit.sampling_reference import FixedMask, reference

Logits = NDArray[np.float32]

VOCABULARY = 43
"""More than a word of a mask, and no multiple of one."""

rows_st = arrays(np.float32, VOCABULARY, elements=st.floats(-20, 20, width=32))
coarse_rows_st = arrays(np.float32, VOCABULARY, elements=st.integers(-6, 6))
"""With many equals."""

tokens_st = st.lists(st.integers(0, VOCABULARY - 1), max_size=12).map(tuple)
few_st = st.one_of(st.just(()), st.lists(st.integers(0, VOCABULARY - 1), max_size=VOCABULARY).map(tuple))
shares_st = st.one_of(st.just(1.0), st.floats(0.01, 1))
params_st = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 2)),
    top_p=shares_st,
    top_k=st.one_of(st.just(0), st.integers(0, 60)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    typical_p=shares_st,
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.01, 10)),
    presence_penalty=st.one_of(st.just(0.0), st.floats(-2, 2)),
    frequency_penalty=st.one_of(st.just(0.0), st.floats(-2, 2)),
    logit_bias=st.dictionaries(
        st.integers(0, VOCABULARY - 1), st.floats(-100, 100, width=32), max_size=5
    ).map(lambda bias: tuple(bias.items())),
    allowed_token_ids=few_st,
    banned_token_ids=few_st,
    seed=st.integers(0, 2**64 - 1),
)
samples_st = st.builds(
    Sample,
    request_id=st.just(1),
    row=st.just(0),
    index=st.integers(0, 2**31),
    params=params_st,
    prompt_ids=tokens_st,
    output_ids=tokens_st,
    mask=st.one_of(
        st.none(),
        st.sets(st.integers(0, VOCABULARY - 1), min_size=1).map(lambda ids: FixedMask(VOCABULARY, ids)),
    ),
    banned=few_st,
)


def sample(params: SamplingParams, index: int = 0) -> Sample:
    return Sample(request_id=1, row=0, index=index, params=params)


@given(logits=st.one_of(rows_st, coarse_rows_st), asked=samples_st)
def test_probabilities_are_the_reference_ones(logits: Logits, asked: Sample) -> None:
    """The same tokens are kept, and each is as likely; but for what rounding may put on either side."""
    assume(asked.params.temperature > 0)
    wanted = reference(logits.tolist(), asked)
    assume(wanted.margin > 1e-9)
    found = probabilities(logits, asked)
    assert set(np.flatnonzero(found)) == set(np.flatnonzero(wanted.probabilities))
    assert np.abs(found - wanted.probabilities).max() < 1e-12


@given(logits=st.one_of(rows_st, coarse_rows_st), asked=samples_st)
def test_logits_are_adjusted_as_the_reference_does(logits: Logits, asked: Sample) -> None:
    found, wanted = adjusted(logits, asked), sampling_reference.adjusted(logits.tolist(), asked)
    assert found.tolist() == wanted


@given(logits=st.one_of(rows_st, coarse_rows_st), asked=samples_st)
def test_what_comes_may_come_and_greedy_is_the_likeliest(logits: Logits, asked: Sample) -> None:
    (token,) = sample_tokens(logits[None], [asked])
    wanted = reference(logits.tolist(), asked)
    assert token in sampling_reference.permitted(VOCABULARY, asked)
    if asked.params.temperature == 0:
        assert wanted.probabilities[token] == 1
    elif wanted.margin > 1e-9:
        assert wanted.probabilities[token] > 0


@given(
    logits=arrays(np.float32, (5, VOCABULARY), elements=st.floats(-20, 20, width=32)),
    asked=st.lists(samples_st, min_size=5, max_size=5),
)
def test_alone_is_as_in_a_batch(logits: Logits, asked: list[Sample]) -> None:
    together = sample_tokens(logits, asked)
    alone = [sample_tokens(logits[i : i + 1], [one])[0] for i, one in enumerate(asked)]
    assert together == alone


def test_a_mask_is_asked_once_and_one_without_tokens_is_a_bug() -> None:
    mask = FixedMask(VOCABULARY, {3, 40})
    asked = sample(SamplingParams(1))._replace(mask=mask)
    logits = np.arange(VOCABULARY, dtype=np.float32)[None]
    assert sample_tokens(logits, [asked]) == [40]
    assert mask.num_waits == 1
    empty = asked._replace(mask=FixedMask(VOCABULARY, ()))
    with pytest.raises(ValueError, match="this is a bug: a mask leaves none of 43 tokens"):
        sample_tokens(logits, [empty])


def test_bits_of_a_mask_behind_the_vocabulary_count_for_nothing() -> None:
    asked = sample(SamplingParams(1))._replace(mask=FixedMask(64, range(VOCABULARY, 64)))
    with pytest.raises(ValueError, match="this is a bug"):
        sample_tokens(np.zeros((1, VOCABULARY), np.float32), [asked])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("mask", "allowed", "banned", "too_early", "left"),
    [
        ((), (), range(VOCABULARY), (), range(VOCABULARY)),  # everything is banned
        ((), (7,), (7,), (), (7,)),  # banned is passed over
        ((), (7, 8), (7,), (8,), (8,)),  # what would end the text is all that may come: it ends
        ((1, 2), (7,), (), (), (1, 2)),  # the mask goes before what is allowed
        ((1, 2), (2, 7), (2,), (1,), (2,)),
    ],
)
def test_rules_that_leave_no_token_are_passed_over(
    temperature: float,
    mask: tuple[int, ...],
    allowed: tuple[int, ...],
    banned: tuple[int, ...],
    too_early: tuple[int, ...],
    left: tuple[int, ...],
) -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    drawn = set()
    for seed in range(100 * len(left)):
        params = SamplingParams(
            1,
            temperature=temperature,
            seed=seed,
            allowed_token_ids=tuple(allowed),
            banned_token_ids=tuple(banned),
        )
        made = FixedMask(VOCABULARY, mask) if mask else None
        drawn |= set(sample_tokens(logits, [Sample(1, 0, 0, params, mask=made, banned=too_early)]))
    assert drawn == (set(left) if temperature else {min(left)})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_of_tokens_that_a_model_thinks_impossible_one_comes_if_no_other_may(temperature: float) -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, 5:8] = -np.inf
    params = SamplingParams(1, temperature=temperature, allowed_token_ids=(5, 6))
    assert sample_tokens(logits, [sample(params)])[0] in (5, 6)
    assert sample_tokens(logits, [sample(replace(params, allowed_token_ids=(5, 9)))]) == [9]


CHECKED = {
    "temperature": SamplingParams(1, temperature=0.9),
    "everything": SamplingParams(
        1, temperature=1.2, top_p=0.95, top_k=10, min_p=0.02, typical_p=0.9, repetition_penalty=1.3,
        presence_penalty=0.4, frequency_penalty=0.3, logit_bias=((2, 1.5), (11, -2.0)),
        banned_token_ids=(9,),
    ),
}  # fmt: skip
TABLE = CHECKED | {
    "hot": SamplingParams(1, temperature=2.0),
    "top_p": SamplingParams(1, temperature=1.0, top_p=0.7),
    "top_k": SamplingParams(1, temperature=1.0, top_k=4),
    "min_p": SamplingParams(1, temperature=1.0, min_p=0.1),
    "typical_p": SamplingParams(1, temperature=1.0, typical_p=0.6),
    "repetition": SamplingParams(1, temperature=1.0, repetition_penalty=1.8),
    "repetition below 1": SamplingParams(1, temperature=1.0, repetition_penalty=0.6),
    "presence": SamplingParams(1, temperature=1.0, presence_penalty=1.5),
    "presence below 0": SamplingParams(1, temperature=1.0, presence_penalty=-1.5),
    "frequency": SamplingParams(1, temperature=1.0, frequency_penalty=0.9),
    "bias": SamplingParams(1, temperature=1.0, logit_bias=((0, 3.0), (11, -100.0))),
    "allowed": SamplingParams(1, temperature=1.0, allowed_token_ids=(1, 5, 8)),
    "banned": SamplingParams(1, temperature=1.0, banned_token_ids=(10, 11)),
    "top_k and top_p": SamplingParams(1, temperature=0.8, top_k=6, top_p=0.8),
    "min_p and typical_p": SamplingParams(1, temperature=1.4, min_p=0.05, typical_p=0.8),
    "penalties and top_p": SamplingParams(
        1, temperature=1.0, top_p=0.85, repetition_penalty=1.4, frequency_penalty=0.4
    ),
}


def chi_square(params: SamplingParams, num_seeds: int) -> tuple[float, int]:
    """Of tokens drawn with seeds 0 and on against the reference; and its degrees of freedom."""
    logits = np.array([-1.5, 0.3, 0.1, 1.2, -0.4, 0.7, 1.1, -2.0, 0.0, 0.9, 1.6, 2.1], np.float32)
    asked = sample(params)._replace(prompt_ids=(1, 3, 3, 7), output_ids=(6, 11, 6, 3, 10))
    wanted = reference(logits.tolist(), asked)
    assert wanted.margin > 1e-6
    seeds = (asked._replace(params=replace(params, seed=seed)) for seed in range(num_seeds))
    drawn = [sample_tokens(logits[None], [one])[0] for one in seeds]
    expected = np.array(wanted.probabilities) * num_seeds
    found = np.bincount(drawn, minlength=logits.size)
    assert not found[expected == 0].any()
    possible = expected > 0
    statistic = ((found[possible] - expected[possible]) ** 2 / expected[possible]).sum()
    return float(statistic), int(possible.sum()) - 1


def quantile(degrees: int, deviations: float = 4.0) -> float:
    """Of chi-square, as far out as ``deviations`` of a normal distribution (Wilson and Hilferty)."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + deviations * math.sqrt(part)) ** 3)


@pytest.mark.parametrize("name", CHECKED)
def test_frequencies_follow_the_reference(name: str) -> None:
    statistic, degrees = chi_square(CHECKED[name], 10_000)
    assert degrees >= 4
    assert statistic < quantile(degrees)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_frequencies_of_every_knob_follow_the_reference(name: str) -> None:
    statistic, degrees = chi_square(TABLE[name], 60_000)
    assert degrees >= 2
    assert statistic < quantile(degrees)


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
    whole = probabilities(logits, sample(SamplingParams(1, temperature=1.0)))
    order = np.argsort(-whole, kind="stable")
    before = np.cumsum(whole[order]) - whole[order]
    cut = probabilities(logits, sample(SamplingParams(1, temperature=1.0, top_p=top_p)))
    kept = set(np.flatnonzero(cut).tolist())
    wanted = set(order[before < top_p].tolist())
    # A token that a rounding error parts from top_p may fall on either side.
    assert kept == wanted or np.abs(before - top_p).min() < 1e-12
    assert kept <= set(order[: max(len(wanted), len(kept))].tolist()), "of equal ones the first"


weights_st = st.one_of(
    arrays(np.float64, VOCABULARY, elements=st.floats(0, 1)),
    arrays(np.float64, VOCABULARY, elements=st.sampled_from([0.0, 1e-300, 0.1, 0.125, 0.5])),
).filter(lambda weights: bool(weights.any()))


@given(weights=weights_st, share=st.floats(0.001, 0.9999), candidates=st.integers(1, VOCABULARY))
def test_cuts_among_candidates_are_those_among_all(weights: Weights, share: float, candidates: int) -> None:
    """Bit for bit: the candidates are the beginning of the same order, and are added in it."""
    for cut in (cut_to_nucleus, cut_to_typical):
        few, all_of_them = weights.copy(), weights.copy()
        cut(few, share, candidates)
        cut(all_of_them, share, weights.size)
        assert np.array_equal(few, all_of_them)
        assert few.any()


@given(
    logits=arrays(np.float32, 1500, elements=st.floats(-9, 9, width=32)),
    params=params_st.filter(lambda params: params.temperature > 0),
)
def test_a_draw_inverts_the_cumulative_sum(logits: Logits, params: SamplingParams) -> None:
    token = sample_tokens(logits[None], [sample(params)])[0]
    weights = probabilities(logits, sample(params))
    uniform = np.random.Generator(np.random.Philox(key=params.seed, counter=0)).random()
    assert weights[token] > 0
    assert weights[:token].sum() <= uniform + 1e-12
    assert weights[: token + 1].sum() >= uniform - 1e-12
