"""The first runs of a model, before anybody waits for them."""

from __future__ import annotations

from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.sampling_params import SamplingParams

_MAX_SLOTS = 16
"""More rows than this warm nothing that these did not."""


def warm_up(runner: ModelRunner, num_slots: int, chunk_tokens: int) -> None:
    """Prefill a token into some slots, decode them together, then prefill a chunk of ``chunk_tokens`` tokens.

    Kernels allocate and pack on their first run. What this leaves in the slots is in no scheduler's books, so
    nobody uses it.
    """
    params = SamplingParams(max_tokens=1)
    slots = range(min(num_slots, _MAX_SLOTS))
    for slot in slots:
        runner.run(StepPlan((), PrefillChunk(slot, 0, (0,)), (Sample(slot, 0, 0, params),)))
    rows = tuple(DecodeRow(slot, 0, 1) for slot in slots)
    runner.run(StepPlan(rows, None, tuple(Sample(slot, slot, 1, params) for slot in slots)))
    runner.run(
        StepPlan((), PrefillChunk(0, 0, (0,) * chunk_tokens), (Sample(0, chunk_tokens - 1, 0, params),))
    )
