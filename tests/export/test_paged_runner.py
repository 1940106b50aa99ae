"""A model over blocks says what the same model over slots says, whatever the blocks are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import (
    MAX_SCORED_ROWS,
    BlockCopy,
    BlockGrant,
    DecodeRow,
    PrefillChunk,
    Sample,
    Score,
    SlotCopy,
    SlotRelease,
    StepPlan,
)
from llm_grpc.errors import ManifestError
from llm_grpc.export.verify_drive import prefill
from llm_grpc.manifest import Manifest, load_manifest
from llm_grpc.runtime.paged_runner import PagedRunner
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.runtime.token_scores import step_result
from llm_grpc.sampling_params import SamplingParams
from tests.export.paged_models import BLOCK, CONTEXT, Paged, exported, in_fp32
from tests.export.random_model import save_random_model
from tests.export.threefold import ids
from tests.unit.sampling_reference import FixedMask

TOLERANCE = 1e-5
"""Of the largest logit: both compute in fp32 over the same weights, and add in another order."""

Logits = NDArray[np.float32]
Model = tuple[Path, Manifest]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("paged") / "checkpoint")


@pytest.fixture(scope="module")
def paged_dir(checkpoint: Path) -> Path:
    return exported(checkpoint, checkpoint.parent / "paged", "paged")


@pytest.fixture(scope="module")
def model(paged_dir: Path) -> Iterator[Model]:
    with in_fp32(paged_dir) as found:
        yield found


@pytest.fixture(scope="module")
def slots(checkpoint: Path) -> Iterator[SlotRunner]:
    with in_fp32(exported(checkpoint, checkpoint.parent / "slots", "slots")) as (directory, manifest):
        yield SlotRunner(directory, manifest, 2, CONTEXT, threads=1)


@pytest.fixture
def paged(model: Model) -> Paged:
    return Paged.of(*model)


def assert_close(found: Logits, wanted: Logits) -> None:
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


STEPS = st.lists(st.lists(st.integers(0, 30), min_size=5, max_size=5), min_size=1, max_size=8)
"""Tokens of each of five sequences in each step; one that is all that is left of a sequence decodes."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(0, 1000))
def test_any_mix_of_rows_and_chunks_is_what_slots_compute(
    model: Model, slots: SlotRunner, steps: list[list[int]], seed: int
) -> None:
    paged = Paged.of(*model, seed=seed)
    texts = [ids(seed + slot, CONTEXT) for slot in range(5)]
    wanted = [prefill(slots, text) for text in texts]
    done = [0] * 5
    for counts in steps:
        rows, chunks, expected = [], [], []
        for slot, count in enumerate(counts):
            tokens = texts[slot][done[slot] : done[slot] + count]
            if len(tokens) == 1:
                rows.append(DecodeRow(slot, tokens[0], done[slot]))
            elif tokens:
                chunks.append(PrefillChunk(slot, done[slot], tokens))
        for slot, size in [(r.slot, 1) for r in rows] + [(c.slot, len(c.tokens)) for c in chunks]:
            expected.append(wanted[slot][done[slot] : done[slot] + size])
            done[slot] += size
        if expected:
            assert_close(paged.step(rows, chunks), np.concatenate(expected))


def test_greedy_tokens_are_the_same_alone_and_among_others(paged: Paged, slots: SlotRunner) -> None:
    prompts = {slot: ids(slot, 9 + 7 * slot) for slot in (0, 2, 3, 5)}
    said = {slot: list(prompt) for slot, prompt in prompts.items()}
    chunks = [PrefillChunk(slot, 0, prompt) for slot, prompt in prompts.items()]
    ends = np.cumsum([len(prompt) for prompt in prompts.values()]) - 1
    first = paged.step(chunks=chunks)[ends].argmax(-1)
    for slot, token in zip(prompts, first, strict=True):
        said[slot].append(int(token))
    for _ in range(30):
        rows = [DecodeRow(slot, tokens[-1], len(tokens) - 1) for slot, tokens in said.items()]
        samples = tuple(Sample(i, i, 0, SamplingParams(1)) for i in range(len(rows)))
        grants = tuple(grant for row in rows for grant in paged.grants(row.slot, row.position + 1))
        found = paged.runner.run(StepPlan(tuple(rows), (), samples, grants=grants)).tokens
        for row, token in zip(rows, found, strict=True):
            said[row.slot].append(token)
    for slot, prompt in prompts.items():
        wanted = prefill(slots, said[slot][:-1])[len(prompt) - 1 :].argmax(-1)
        assert said[slot][len(prompt) :] == wanted.tolist()


def test_blocks_that_are_shared_are_a_common_beginning(paged: Paged, slots: SlotRunner) -> None:
    first = ids(1, 60)
    second = first[: 2 * BLOCK] + ids(2, 20)
    paged.step(chunks=[PrefillChunk(0, 0, first)])
    grants = paged.share(1, 0, 2)
    chunk = PrefillChunk(1, 2 * BLOCK, second[2 * BLOCK :])
    found = paged.step([DecodeRow(0, 7, 60)], [chunk], grants)
    assert_close(found[:1], prefill(slots, [*first, 7])[60:])
    assert_close(found[1:], prefill(slots, second)[2 * BLOCK :])


def test_a_block_that_is_copied_is_written_apart(paged: Paged, slots: SlotRunner) -> None:
    """Two sequences part in the middle of a block: the second writes to a copy of it."""
    first, second = ids(1, 24), ids(2, 24)
    second[:20] = first[:20]
    paged.step(chunks=[PrefillChunk(0, 0, first)])
    own, spare = paged.free.pop(), paged.free.pop()
    grants = (*paged.share(1, 0, 1), BlockGrant(1, 1, (own,)))
    paged.tables[1].append(own)
    copies = (BlockCopy(paged.tables[0][1], spare), BlockCopy(spare, own))
    found = paged.step(chunks=[PrefillChunk(1, 20, second[20:])], grants=grants, copies=copies)
    assert_close(found, prefill(slots, second)[20:])
    assert_close(paged.step([DecodeRow(0, 9, 24)]), prefill(slots, [*first, 9])[24:])


def test_a_slot_whose_blocks_went_to_another_begins_again(paged: Paged, slots: SlotRunner) -> None:
    first, second = ids(1, 40), ids(2, 50)
    paged.step(chunks=[PrefillChunk(0, 0, first)])
    paged.free.extend(paged.tables.pop(0))
    paged.step(chunks=[PrefillChunk(1, 0, second)])
    assert_close(paged.step(chunks=[PrefillChunk(0, 0, first)]), prefill(slots, first))
    assert_close(paged.step([DecodeRow(1, 3, 50)]), prefill(slots, [*second, 3])[50:])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_rows_that_fill_a_step_up_touch_nobody(paged: Paged, slots: SlotRunner, count: int) -> None:
    texts = [ids(slot, 20) for slot in range(count)]
    paged.step(chunks=[PrefillChunk(slot, 0, text) for slot, text in enumerate(texts)])
    arrays = [array.read() for array in paged.runner._stages.pools[0].arrays.values()]
    before = [array.copy() for array in arrays]
    rows = [DecodeRow(slot, 3, 20) for slot in range(count)]
    found = paged.step(rows)
    assert found.shape[0] == count
    for old, new in zip(before, arrays, strict=True):
        for slot in range(count):  # what the step is to write
            old[paged.tables[slot][20 // BLOCK], 20 % BLOCK] = new[
                paged.tables[slot][20 // BLOCK], 20 % BLOCK
            ]
        assert np.array_equal(old[:-1], new[:-1])
    for slot, text in enumerate(texts):
        assert_close(found[slot : slot + 1], prefill(slots, [*text, 3])[20:])


def test_draws_are_those_of_slots(paged: Paged, slots: SlotRunner) -> None:
    """Greedy rows and drawn ones in one step, with a chunk and without."""
    prompt = ids(1, 30)
    kinds = [
        SamplingParams(1),
        SamplingParams(1, temperature=0.7, seed=3),
        SamplingParams(1, temperature=1.5, top_k=5, seed=4),
        SamplingParams(1, temperature=1.0, top_p=0.6, seed=5),
    ]
    samples = tuple(Sample(i, 29 - 9 * i, i, kind) for i, kind in enumerate(kinds))
    chunk = PrefillChunk(0, 0, prompt)
    wanted = slots.run(StepPlan((), (chunk,), samples)).tokens
    assert paged.runner.run(StepPlan((), (chunk,), samples, grants=paged.grants(0, 60))).tokens == wanted
    row = DecodeRow(0, 5, 30)
    for kind in kinds:
        plan = StepPlan((row,), (), (Sample(0, 0, 7, kind),))
        assert paged.runner.run(plan) == slots.run(plan)


def test_a_step_of_a_size_is_bound_once_and_recorded_once(paged: Paged) -> None:
    for slot in range(3):
        paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10))])
    plans = [[DecodeRow(slot, 1, at) for slot in range(3)] for at in range(10, 15)]
    paged.step(plans[0])
    binds, graphs = paged.runner.num_binds, paged.runner.num_graphs
    assert graphs == 1
    for rows in plans[1:]:
        paged.step(rows)
    assert (paged.runner.num_binds, paged.runner.num_graphs) == (binds, graphs)
    paged.step(plans[-1][:2])
    assert paged.runner.num_graphs == 2


def test_of_greedy_rows_ids_come_back_and_no_logits(paged: Paged) -> None:
    paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10)) for slot in range(3)])
    samples = tuple(Sample(slot, slot, 0, SamplingParams(1)) for slot in range(3))
    rows = tuple(DecodeRow(slot, 1, 10) for slot in range(3))
    before = paged.runner.traffic.from_device
    paged.runner.run(StepPlan(rows, (), samples))
    assert paged.runner.traffic.from_device - before == 3 * 8
    drawn = (samples[0]._replace(params=SamplingParams(1, temperature=1.0)), *samples[1:])
    before = paged.runner.traffic.from_device
    paged.runner.run(StepPlan(rows, (), drawn))
    assert paged.runner.traffic.from_device - before == 3 * 8 + 3 * (8 + 1)
    assert paged.runner.sampler.num_undecided == 0


KINDS = [
    SamplingParams(1),
    SamplingParams(1, temperature=0.9, seed=1, num_logprobs=2),
    SamplingParams(1, temperature=1.1, seed=2, top_p=0.9, repetition_penalty=1.7),
    SamplingParams(1, temperature=1.0, seed=3, min_p=0.3, logit_bias=((3, 2.0),)),
    SamplingParams(1, temperature=1.0, seed=4, typical_p=0.5),
    SamplingParams(1, temperature=1.0, seed=6, min_p=0.9),
    SamplingParams(1, temperature=0.7, seed=5, top_k=5),
    SamplingParams(1, allowed_token_ids=(4, 5, 6), num_logprobs=0),
]
"""What the device chooses by itself, and what it leaves to the host."""


def asked(kinds: list[SamplingParams], rows: list[int]) -> tuple[Sample, ...]:
    return tuple(
        Sample(place, row, place, kind, (1, 2, 3), (4, 4))
        for place, (kind, row) in enumerate(zip(kinds, rows, strict=True))
    )


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3])
@pytest.mark.parametrize("has_chunk", [False, True])
def test_what_is_chosen_and_told_is_what_the_logits_say(
    model: Model, num_micro_batches: int, has_chunk: bool
) -> None:
    """Rows that are sampled and scored, or twice, by all sorts of parameters."""
    paged = Paged.of(*model, num_micro_batches=num_micro_batches)
    paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10)) for slot in range(4)])
    rows = tuple(DecodeRow(slot, 5, 10) for slot in (2, 0, 3, 1))
    chunks = (PrefillChunk(4, 0, ids(4, 30)),) if has_chunk else ()
    paged.step(rows, chunks)
    places = [3, 1, 0, 2, 3, 3, 1, 1]
    samples = asked(KINDS, [place + 30 if has_chunk and place == 3 else place for place in places])
    scores = (Score(7, 1, 9, 2), Score(7, 0, 8), Score(7, 3, 0), Score(7, 1, 9))
    for plan in (
        StepPlan(rows, chunks, samples, scores=scores),
        StepPlan(rows, chunks, (), scores=scores),
        StepPlan(rows, chunks, samples[:3]),
    ):
        found, logits = paged.runner.run(plan), paged.runner.logits(plan)
        assert logits.shape == (len(plan.logit_rows), model[1].vocabulary_size)
        assert found == step_result(plan, logits)
        assert len(found.logprobs) == sum(s.params.num_logprobs is not None for s in plan.samples)


def test_a_mask_holds_a_row_of_a_step_and_no_other(paged: Paged) -> None:
    paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10)) for slot in range(3)])
    rows = tuple(DecodeRow(slot, 1, 10) for slot in range(3))
    vocabulary = paged.runner.logits(StepPlan(rows, (), asked(KINDS[:1], [0]))).shape[1]
    plain = asked([KINDS[0], KINDS[0], KINDS[6]], [0, 1, 2])
    free = paged.runner.run(StepPlan(rows, (), plain)).tokens
    mask = FixedMask(vocabulary, {7, 256})
    held = (plain[0], plain[1]._replace(mask=mask), plain[2]._replace(banned=(free[2],)))
    found = paged.runner.run(StepPlan(rows, (), held)).tokens
    assert found[0] == free[0]
    assert found[1] in mask.tokens
    assert found[2] != free[2]
    assert mask.num_waits == 1


def test_rows_that_the_host_looks_at_come_back_and_no_others(paged: Paged) -> None:
    paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10)) for slot in range(3)])
    rows = tuple(DecodeRow(slot, 1, 10) for slot in range(3))
    row_bytes = 4 * paged.runner.logits(StepPlan(rows, (), asked(KINDS[:1], [0]))).shape[1]

    def num_read(plan: StepPlan) -> int:
        before = paged.runner.traffic.from_device
        paged.runner.run(plan)
        return paged.runner.traffic.from_device - before

    told = asked([KINDS[0], KINDS[1], KINDS[6]], [0, 1, 2])
    assert num_read(StepPlan(rows, (), told)) == 3 * 8 + 3 * (8 + 1) + row_bytes
    assert num_read(StepPlan(rows, (), told[1:2])) == row_bytes
    assert num_read(StepPlan(rows, (), (), scores=(Score(1, 2, 3), Score(1, 0, 3)))) == 2 * row_bytes
    assert num_read(StepPlan(rows, (), asked([KINDS[0]] * 2, [1, 1]))) == 3 * 8 + row_bytes, "once more"


def test_scores_of_a_step_have_memory_from_the_start(paged: Paged) -> None:
    """As many as one has at most, beside a sample of every slot."""
    paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10)) for slot in range(5)])
    chunk = PrefillChunk(5, 0, ids(9, 100))
    rows = tuple(DecodeRow(slot, 1, 10) for slot in range(5))
    scores = tuple(Score(1, 5 + at, chunk.tokens[at + 1]) for at in range(MAX_SCORED_ROWS))
    samples = asked([KINDS[0]] * 6, [*range(5), 104])
    grants = paged.grants(5, 100)
    found = paged.runner.run(StepPlan(rows, (chunk,), samples, grants=grants, scores=scores))
    assert len(found.scores) == MAX_SCORED_ROWS
    addresses = {outputs.logits.array.address for outputs in paged.runner._outputs.values()}
    assert len(addresses) == 1


def test_steps_of_all_sizes_write_their_logits_to_one_memory(paged: Paged, slots: SlotRunner) -> None:
    """A small step after a large one finds its own."""
    paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10)) for slot in range(6)])
    for count in (6, 3, 1, 2):
        found = paged.step([DecodeRow(slot, 3, 10) for slot in range(count)])
        for slot in range(count):
            assert_close(found[slot : slot + 1], prefill(slots, [*ids(slot, 10), 3])[10:])
    rows = {rows: outputs.logits.array.address for (_, rows), outputs in paged.runner._outputs.items()}
    assert set(rows) == {64, 6, 3, 1, 2}
    assert len({address for count, address in rows.items() if count <= 16}) == 1


CHUNK = PrefillChunk(0, 0, (1, 2, 3))


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (StepPlan((), (PrefillChunk(0, 0, (1,) * 301),), ()), "a step of 301 tokens, and the limit is 300"),
        (StepPlan((), (), ()), "a step of 0 tokens"),
        (StepPlan((), (CHUNK,), ()), "a token is written where its slot has no block"),
        (StepPlan((), (CHUNK,), (), copies=(SlotCopy(0, 1, 1),)), "copies and releases of slots"),
        (StepPlan((), (CHUNK,), (), releases=(SlotRelease(0, 1),)), "copies and releases of slots"),
        (StepPlan((), (CHUNK,), (), grants=(BlockGrant(0, 0, (48,)),)), "names a block outside 48"),
        (StepPlan((), (CHUNK,), (), grants=(BlockGrant(6, 0, (1,)),)), "outside the table of 6 x 8"),
        (StepPlan((), (CHUNK,), (), grants=(BlockGrant(0, 8, (1,)),)), "outside the table of 6 x 8"),
        (StepPlan((), (CHUNK,), (), block_copies=(BlockCopy(0, 48),)), "names a block outside 48"),
        (StepPlan((DecodeRow(0, 1, CONTEXT),), (), ()), "position 128 is outside the table"),
        (StepPlan(tuple(DecodeRow(slot, 1, 0) for slot in range(7)), (), ()), "more sequences"),
        (
            StepPlan((), (CHUNK,), asked(KINDS[:1] * 385, [2] * 385)),
            "385 rows of logits, and the limit is 384",
        ),
    ],
)
def test_a_plan_that_no_scheduler_makes_is_refused(paged: Paged, plan: StepPlan, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        paged.runner.run(plan)


def test_a_model_of_the_other_lowering_is_refused(paged_dir: Path, checkpoint: Path) -> None:
    manifest = load_manifest(paged_dir)
    with pytest.raises(ManifestError, match="computes in float16, which needs an NVIDIA GPU"):
        PagedRunner(paged_dir, manifest, 4, 1, 64, 64)
    with in_fp32(paged_dir) as (directory, wide):
        with pytest.raises(ManifestError, match="the graph's"):
            SlotRunner(directory, wide.model_copy(update={"lowering": "slots"}), 1, 64)
        slots = wide.model_copy(update={"lowering": "slots", "block_size": None})
        with pytest.raises(ManifestError, match="has the lowering slots, and not paged"):
            PagedRunner(directory, slots, 4, 1, 64, 64)
