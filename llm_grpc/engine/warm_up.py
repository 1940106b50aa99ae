"""The first runs of a model, before anybody waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.step_budget import TILE, StepBudget, doublings, measured_budget
from llm_grpc.engine.step_plan import (
    LONG_CONTEXT,
    BlockGrant,
    DecodeRow,
    PrefillChunk,
    Sample,
    SlotRelease,
    StepPlan,
)
from llm_grpc.sampling_params import SamplingParams

WARM_UP = SamplingParams(max_tokens=1)
"""What samples of these runs ask for; nobody else has this object."""

_MAX_SLOTS = 16
"""More rows than this warm nothing that these did not, where steps are not recorded by their size."""


def warm_up(
    runner: ModelRunner,
    num_slots: int,
    chunk_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    block_size: int | None = None,
    max_chunk_tokens: int | None = None,
    context_tokens: int = 0,
) -> StepBudget:
    """Run the kinds of steps that there will be, and say how much one may compute from how long they take.

    Kernels allocate and pack on their first run. A step takes chunks of at most ``max_chunk_tokens``, one for
    each prompt; only one, however long, where that is None. ``block_size`` is lowering ``paged``'s: each size
    of its decode steps is run, and again with long sequences where ``context_tokens`` has room for one, for
    these are recorded, and nobody is to wait for that. What this leaves in slots and blocks is in no
    scheduler's books, so nobody uses it; slots give back its memory but for a token's.
    """
    slots = range(min(num_slots, _MAX_SLOTS))
    longest = min(chunk_tokens, max_chunk_tokens or chunk_tokens)
    num_chunks = min(-(-chunk_tokens // longest), len(slots))
    others, prefilled = slots[: len(slots) - num_chunks], slots[len(slots) - num_chunks :]
    most = min(chunk_tokens, num_chunks * longest)

    def chunks(num_tokens: int) -> list[PrefillChunk]:
        starts = range(0, num_tokens, longest)
        sizes = (min(longest, num_tokens - start) for start in starts)
        return [PrefillChunk(slot, 0, (0,) * size) for slot, size in zip(prefilled, sizes, strict=False)]

    starts = (1, LONG_CONTEXT) if context_tokens > LONG_CONTEXT else (1,)
    num_granted = max(longest, starts[-1] + 1)
    grants = _grants(range(num_slots), num_granted, block_size) if block_size else ()
    for slot in slots:
        runner.run(replace(_step((), [PrefillChunk(slot, 0, (0,))]), grants=grants))
        grants = ()
    runner.run(_step((), chunks(most)))
    for position in starts if block_size else ():
        for start in range(0, position, longest):
            runner.run(_step((), [PrefillChunk(0, start, (0,) * min(longest, position - start))]))
        for num_rows in (*doublings(1, num_slots - 1), num_slots):
            runner.run(_step(range(num_rows), (), position))

    def seconds(num_rows: int, num_chunk_tokens: int) -> float:
        plan, started = _step(others[:num_rows], chunks(num_chunk_tokens)), clock()
        runner.run(plan)
        return clock() - started

    budget = measured_budget(seconds, len(others), most)
    if not block_size:
        releases = tuple(SlotRelease(slot, 0) for slot in slots)
        runner.run(replace(_step((), [PrefillChunk(0, 0, (0,))]), releases=releases))
    return budget


def _grants(slots: Sequence[int], num_tokens: int, block_size: int) -> tuple[BlockGrant, ...]:
    """The same blocks for all: they write the same there, and there are enough for a context's tokens."""
    blocks = tuple(range(-(-max(num_tokens, 2) // block_size)))
    return tuple(BlockGrant(slot, 0, blocks) for slot in slots)


def _step(slots: Sequence[int], chunks: Sequence[PrefillChunk], position: int = 1) -> StepPlan:
    """Decode a token in each of ``slots`` beside ``chunks``; each chooses one, and all of short ones."""
    rows = tuple(DecodeRow(slot, 0, position) for slot in slots)
    ends = [*accumulate((len(chunk.tokens) for chunk in chunks), initial=len(rows))]
    chosen = [*range(len(rows)), *(end - 1 for end in ends[1:])]
    if ends[-1] <= TILE:
        chosen = [*range(ends[-1])]
    return StepPlan(rows, tuple(chunks), tuple(Sample(row, row, 0, WARM_UP) for row in chosen))
