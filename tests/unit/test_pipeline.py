"""Micro-batches pass the stages in order, several at a time, and a failure ends a step and nothing else."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.runtime.pipeline import Pipeline, run_in_turn

HANG_S = 60.0
Cell = tuple[int, int]


class Failure(Exception):
    """What a cell of a test raises."""


class Recorder:
    """Takes down when cells begin and end, and raises in one of them."""

    def __init__(self, failing: Cell | None = None) -> None:
        self._failing = failing
        self._lock = threading.Lock()
        self.begun: list[Cell] = []
        self.ended: list[Cell] = []

    def __call__(self, batch: int, stage: int) -> None:
        with self._lock:
            for before in ((batch - 1, stage), (batch, stage - 1)):
                assert min(before) < 0 or before in self.ended, f"{batch, stage} began before {before} ended"
            self.begun.append((batch, stage))
        if (batch, stage) == self._failing:
            raise Failure
        with self._lock:
            self.ended.append((batch, stage))


def cells(num_batches: int, num_stages: int) -> list[Cell]:
    return [(batch, stage) for batch in range(num_batches) for stage in range(num_stages)]


@given(st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None)
def test_every_cell_once_after_those_that_it_needs(num_batches: int, num_stages: int) -> None:
    recorder = Recorder()
    Pipeline(num_stages).run(num_batches, recorder)
    assert sorted(recorder.ended) == cells(num_batches, num_stages)


@given(st.data(), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None)
def test_a_failing_cell_ends_its_run_and_the_next_one_is_whole(
    data: st.DataObject, num_batches: int, num_stages: int
) -> None:
    failing = data.draw(st.sampled_from(cells(num_batches, num_stages)))
    pipeline, recorder = Pipeline(num_stages), Recorder(failing)
    with pytest.raises(Failure):
        pipeline.run(num_batches, recorder)
    assert {*recorder.begun} == {*recorder.ended, failing}, "nothing runs any more"
    after = [cell for cell in recorder.begun if cell[0] >= failing[0] and cell[1] >= failing[1]]
    assert after == [failing], "what needs the failing cell is left out"
    again = Recorder()
    pipeline.run(num_batches, again)
    assert sorted(again.ended) == cells(num_batches, num_stages)


def test_two_stages_compute_at_the_same_time() -> None:
    """The second batch's first stage and the first one's second wait for each other."""
    meeting = threading.Barrier(2, timeout=HANG_S)

    def cell(batch: int, stage: int) -> None:
        if batch + stage == 1:
            meeting.wait()

    Pipeline(2).run(2, cell)


def test_in_turn() -> None:
    recorder = Recorder()
    run_in_turn(2, 3, recorder)
    assert recorder.ended == cells(2, 3)
