"""The arrays of a step over blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc import graph_names as names
from llm_grpc.engine.step_plan import BlockGrant, DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.runtime.paged_step import BlockTables, bucket_of
from llm_grpc.sampling_params import SamplingParams

BLOCK, PLACES, SCRATCH = 16, 40, 200
PARAMS = SamplingParams(1)


@pytest.fixture
def tables() -> BlockTables:
    """Slot 0 has blocks 7, 3, 9; slot 1 has block 5; slot 2 begins with those of slot 0."""
    tables = BlockTables(4, PLACES, BLOCK, SCRATCH)
    for grant in (BlockGrant(0, 0, (7, 3)), BlockGrant(0, 2, (9,)), BlockGrant(1, 0, (5,))):
        tables.grant(grant)
    tables.grant(BlockGrant(2, 0, (7, 3, 11)))
    return tables


@given(st.integers(1, 5000))
def test_a_bucket_is_not_much_larger(count: int) -> None:
    bucket = bucket_of(count)
    assert count <= bucket <= 1.5 * count
    assert bucket_of(bucket) == bucket


def test_a_mixed_step(tables: BlockTables) -> None:
    chunks = (PrefillChunk(1, 3, (11, 12)), PrefillChunk(2, 30, (21, 22, 23)))
    samples = (Sample(0, 0, 0, PARAMS), Sample(1, 2, 0, PARAMS), Sample(2, 5, 0, PARAMS))
    step = tables.mixed_step(StepPlan((DecodeRow(0, 5, 40),), chunks, samples))
    found = {name: array.tolist() for name, array in step.arrays.items()}
    assert found[names.INPUT_IDS] == [[5, 11, 12, 21, 22, 23]]
    assert found[names.POSITION_IDS] == [[40, 3, 4, 30, 31, 32]]
    assert found[names.SEQUENCE_ENDS] == [0, 1, 3, 6]
    assert found[names.PAST_LENGTHS] == [40, 3, 30]
    assert [row[:3] for row in found[names.BLOCK_TABLE]] == [[7, 3, 9], [5, SCRATCH, SCRATCH], [7, 3, 11]]
    assert found[names.SLOT_MAPPING] == [
        9 * 16 + 8,
        5 * 16 + 3,
        5 * 16 + 4,
        3 * 16 + 14,
        3 * 16 + 15,
        11 * 16,
    ]
    assert found[names.ATTENTION_BOUNDS] == [3, 41, 41]
    assert (found[names.LOGIT_ROWS], step.rows) == ([0, 2, 5], (0, 1, 2))
    assert not step.decodes
    assert {array.dtype.name for array in step.arrays.values()} == {"int64", "int32"}


def test_a_decode_step_is_filled_up_with_rows_of_the_scratch_block(tables: BlockTables) -> None:
    rows = tuple(DecodeRow(slot, 50 + slot, 10 + slot) for slot in (0, 1, 2)) + (DecodeRow(0, 9, 33),) * 2
    step = tables.decode_step(StepPlan(rows, (), (Sample(0, 4, 0, PARAMS),)), 640)
    found = {name: array.tolist() for name, array in step.arrays.items()}
    assert found[names.INPUT_IDS] == [[50, 51, 52, 9, 9, 0]]
    assert found[names.SEQUENCE_ENDS] == [0, 1, 2, 3, 4, 5, 6]
    assert found[names.PAST_LENGTHS] == [10, 11, 12, 33, 33, 0]
    assert found[names.SLOT_MAPPING][-1] == SCRATCH * 16
    assert set(found[names.BLOCK_TABLE][-1]) == {SCRATCH}
    assert found[names.LOGIT_ROWS] == [0, 1, 2, 3, 4, 5]
    assert (step.rows, step.num_rows, step.decodes) == ((4,), 6, True)


def test_bounds_of_steps_that_are_recorded_are_those_of_all_of_them() -> None:
    """One kind says that its longest sequence has more than 512 tokens, the other one nothing."""
    tables = BlockTables(2, PLACES, BLOCK, SCRATCH)
    tables.grant(BlockGrant(0, 0, tuple(range(PLACES))))
    for position, wanted in (
        (0, [1, 640, 0]),
        (511, [1, 640, 0]),
        (512, [1, 640, 513]),
        (639, [1, 640, 513]),
    ):
        step = tables.decode_step(StepPlan((DecodeRow(0, 1, position),), (), ()), 640)
        assert step.arrays[names.ATTENTION_BOUNDS].tolist() == wanted
        assert step.is_long == bool(wanted[2])
