"""A plan and its parts compute the same tokens for the same samples."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.engine.micro_batches import MicroBatch, divide, joined
from llm_grpc.engine.step_plan import (
    BlockCopy,
    BlockGrant,
    DecodeRow,
    PrefillChunk,
    Sample,
    Score,
    SlotCopy,
    SlotRelease,
    StepPlan,
    StepResult,
    TokenScore,
)
from llm_grpc.sampling_params import SamplingParams

PARAMS = SamplingParams(1)

Token = tuple[int, int, int]
"""Slot, position and id."""


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    """Rows and chunks of different slots in any order; samples and scores of some tokens in any order."""
    slots = draw(st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True))
    num_rows = draw(st.integers(0, len(slots)))
    rows = tuple(
        DecodeRow(slot, draw(st.integers(0, 99)), draw(st.integers(0, 99))) for slot in slots[:num_rows]
    )
    chunks = tuple(
        PrefillChunk(slot, draw(st.integers(0, 99)), tuple(range(draw(st.integers(1, 60)))), slot % 2)
        for slot in slots[num_rows:]
    )
    plan = StepPlan(rows, chunks, ())
    chosen = draw(st.lists(st.integers(0, plan.num_tokens - 1), max_size=30))
    samples = tuple(Sample(number, row, number + 1, PARAMS) for number, row in enumerate(chosen))
    scored = draw(st.lists(st.integers(0, plan.num_tokens - 1), max_size=30))
    return StepPlan(
        rows,
        chunks,
        samples,
        (SlotCopy(1, 2, 3),),
        (SlotRelease(4, 5),),
        (BlockGrant(0, 0, (7,)),),
        (BlockCopy(8, 9),),
        tuple(Score(number, row, number + 2, number % 3) for number, row in enumerate(scored)),
    )


def tokens(plan: StepPlan) -> list[Token]:
    """The packed tokens."""
    rows = [(row.slot, row.position, row.token) for row in plan.decode]
    chunks = [
        (chunk.slot, chunk.start + at, token)
        for chunk in plan.chunks
        for at, token in enumerate(chunk.tokens)
    ]
    return rows + chunks


def samples(parts: list[MicroBatch]) -> dict[int, tuple[Token, Sample]]:
    """By place in the whole plan: what is sampled, and the sample."""
    found = {}
    for part in parts:
        assert len(part.samples) == len(part.plan.samples)
        assert list(part.samples) == sorted(part.samples)
        packed = tokens(part.plan)
        for place, sample in zip(part.samples, part.plan.samples, strict=True):
            assert place not in found
            found[place] = packed[sample.row], sample
    return found


@given(plans(), st.integers(1, 6))
def test_nothing_is_lost_or_done_twice(plan: StepPlan, count: int) -> None:
    parts = divide(plan, count)
    assert 1 <= len(parts) <= count
    assert all(part.plan.num_tokens for part in parts)
    rows = [row for part in parts for row in part.plan.decode]
    assert sorted(rows, key=lambda row: row.slot) == sorted(plan.decode, key=lambda row: row.slot)
    assert [chunk for part in parts for chunk in part.plan.chunks] == list(plan.chunks)


@given(plans(), st.integers(1, 6))
def test_samples_are_of_the_tokens_that_they_were_of(plan: StepPlan, count: int) -> None:
    packed, found = tokens(plan), samples(divide(plan, count))
    assert sorted(found) == list(range(len(plan.samples)))
    for place, wanted in enumerate(plan.samples):
        token, sample = found[place]
        assert token == packed[wanted.row]
        assert (sample.request_id, sample.index, sample.params) == (place, place + 1, PARAMS)


@given(plans(), st.integers(1, 6))
def test_scores_are_of_the_tokens_that_they_were_of(plan: StepPlan, count: int) -> None:
    packed, found = tokens(plan), set()
    for part in divide(plan, count):
        for place, score in zip(part.scores, part.plan.scores, strict=True):
            found.add(place)
            assert tokens(part.plan)[score.row] == packed[plan.scores[place].row]
            assert (score.request_id, score.token, score.num_top) == (place, place + 2, place % 3)
    assert sorted(found) == list(range(len(plan.scores)))


@given(plans(), st.integers(1, 6))
def test_what_parts_find_is_joined_in_the_order_of_the_plan(plan: StepPlan, count: int) -> None:
    """Each sample's token tells its place, and so does each score."""
    parts = divide(plan, count)
    rows, results = [0] * len(plan.logit_rows), []
    for part in parts:
        packed = tokens(part.plan)
        places = part.places_in(plan)
        for place, row in zip(places, part.plan.logit_rows, strict=True):
            rows[place] = tokens(plan).index(packed[row])
        chosen = [sample.request_id for sample in part.plan.samples]
        odd = {at: TokenScore(-float(number)) for at, number in enumerate(chosen) if number % 2}
        told = tuple(TokenScore(float(score.request_id)) for score in part.plan.scores)
        results.append(StepResult(chosen, odd, told))
    found = joined(plan, parts, results)
    assert tuple(rows) == plan.logit_rows
    assert list(found.tokens) == list(range(len(plan.samples)))
    assert found.logprobs == {place: TokenScore(-float(place)) for place in range(1, len(plan.samples), 2)}
    assert found.scores == tuple(TokenScore(float(place)) for place in range(len(plan.scores)))


@given(plans(), st.integers(1, 6))
def test_the_first_part_does_what_comes_before(plan: StepPlan, count: int) -> None:
    first, *others = (part.plan for part in divide(plan, count))
    assert (first.copies, first.releases) == (plan.copies, plan.releases)
    assert (first.grants, first.block_copies) == (plan.grants, plan.block_copies)
    assert not any(part.copies or part.releases or part.grants or part.block_copies for part in others)


@given(plans(), st.integers(2, 6))
def test_rows_lie_in_ranges_of_slots_that_do_not_overlap_and_chunks_behind_them(
    plan: StepPlan, count: int
) -> None:
    parts = [part.plan for part in divide(plan, count)]
    slots = [row.slot for part in parts for row in part.decode]
    assert slots == sorted(slots)
    first_with_chunk = next((i for i, part in enumerate(parts) if part.chunks), len(parts))
    assert not any(part.decode for part in parts[first_with_chunk + 1 :])


@given(st.integers(1, 40), st.integers(1, 6))
def test_rows_alone_are_divided_evenly(num_rows: int, count: int) -> None:
    rows = tuple(DecodeRow(slot, 0, 1) for slot in range(num_rows))
    sizes = [part.plan.num_tokens for part in divide(StepPlan(rows, (), ()), count)]
    assert len(sizes) == min(num_rows, count)
    assert max(sizes) - min(sizes) <= 1


def test_a_long_chunk_is_alone_and_a_short_one_has_company() -> None:
    rows = tuple(DecodeRow(slot, 0, 1) for slot in range(8))

    def sizes(num_tokens: int) -> list[tuple[int, int]]:
        plan = StepPlan(rows, (PrefillChunk(9, 0, (0,) * num_tokens),), ())
        return [(len(part.plan.decode), len(part.plan.chunks)) for part in divide(plan, 2)]

    assert sizes(256) == [(8, 0), (0, 1)]
    assert sizes(4) == [(6, 0), (2, 1)]


def test_one_part_is_the_plan() -> None:
    scores = (Score(0, 0, 1), Score(0, 1, 1))
    plan = StepPlan((DecodeRow(3, 0, 1), DecodeRow(1, 0, 1)), (), (Sample(0, 1, 0, PARAMS),), scores=scores)
    assert divide(plan, 1) == [MicroBatch(plan, (0,), (0, 1))]
