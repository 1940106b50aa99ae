"""The first runs of a model, before anybody waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.step_budget import TILE, StepBudget, measured_budget
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, SlotRelease, StepPlan
from llm_grpc.sampling_params import SamplingParams

WARM_UP = SamplingParams(max_tokens=1)
"""What samples of these runs ask for; nobody else has this object."""

_MAX_SLOTS = 16
"""More rows than this warm nothing that these did not."""


def warm_up(
    runner: ModelRunner, num_slots: int, chunk_tokens: int, clock: Callable[[], float] = time.perf_counter
) -> StepBudget:
    """Run the kinds of steps that there will be, and say how much one may compute from how long they take.

    Kernels allocate and pack on their first run. What this leaves in the slots is in no scheduler's books, so
    nobody uses it, and its memory is given back but for a token's.
    """
    slots = range(min(num_slots, _MAX_SLOTS))
    *others, last = slots
    for slot in slots:
        runner.run(_step((), PrefillChunk(slot, 0, (0,))))
    runner.run(_step((), PrefillChunk(last, 0, (0,) * chunk_tokens)))

    def seconds(num_rows: int, num_chunk_tokens: int) -> float:
        chunk = PrefillChunk(last, 0, (0,) * num_chunk_tokens) if num_chunk_tokens else None
        plan, started = _step(others[:num_rows], chunk), clock()
        runner.run(plan)
        return clock() - started

    budget = measured_budget(seconds, len(others), chunk_tokens)
    releases = tuple(SlotRelease(slot, 0) for slot in slots)
    runner.run(replace(_step((), PrefillChunk(0, 0, (0,))), releases=releases))
    return budget


def _step(slots: Sequence[int], chunk: PrefillChunk | None) -> StepPlan:
    """Decode a token in each of ``slots`` beside ``chunk``; each chooses one, and all of a short chunk."""
    rows = tuple(DecodeRow(slot, 0, 1) for slot in slots)
    num_tokens = len(rows) + (len(chunk.tokens) if chunk else 0)
    chosen = [*range(len(rows)), *([num_tokens - 1] if chunk else [])]
    if num_tokens <= TILE:
        chosen = [*range(num_tokens)]
    return StepPlan(rows, (chunk,) if chunk else (), tuple(Sample(row, row, 0, WARM_UP) for row in chosen))
