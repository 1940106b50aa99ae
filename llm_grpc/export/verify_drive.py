"""The exported model's side of a verification: driven as the server drives it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.export.verify_runner import LogitsRunner
from llm_grpc.sampling_params import SamplingParams

Logits = NDArray[np.float32]

CHUNK_TOKENS = 48
"""Small, so that prompts are cut and chunks are computed beside decode rows."""

_GREEDY = SamplingParams(max_tokens=1)


@dataclass
class Trace:
    """A prompt, the tokens that the exported model generated, and the logits row after each token but the
    last: ``len(prompt) + len(tokens) - 1`` rows.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    rows: list[Logits] = field(default_factory=list)

    @property
    def inputs(self) -> list[int]:
        """The tokens that the rows follow."""
        return [*self.prompt, *self.tokens[:-1]]


def generate(
    runner: LogitsRunner, prompts: Sequence[list[int]], num_tokens: int, on_step: Callable[[int, int], None]
) -> list[Trace]:
    """Generate ``num_tokens`` tokens greedily after each prompt, prompt ``i`` in slot ``i``.

    Prompts are prefilled one after the other, in chunks, beside the decode rows of those before them.
    ``on_step`` gets the number of generated tokens and of all.
    """
    traces = [Trace(prompt) for prompt in prompts]
    chunks = deque(chunk for slot, prompt in enumerate(prompts) for chunk in _chunks(slot, prompt))
    while True:
        rows = _decode_rows(traces, num_tokens)
        chunk = chunks.popleft() if chunks else None
        if not rows and not chunk:
            return traces
        logits = run_all_rows(runner, rows, chunk)
        for row, after in zip(rows, logits, strict=False):
            _append(traces[row.slot], after)
        if chunk:
            trace = traces[chunk.slot]
            trace.rows.extend(logits[len(rows) : -1])
            is_last = chunk.start + len(chunk.tokens) == len(trace.prompt)
            _append(trace, logits[-1]) if is_last else trace.rows.append(logits[-1])
        on_step(sum(len(trace.tokens) for trace in traces), num_tokens * len(prompts))


def prefill(runner: LogitsRunner, ids: list[int]) -> Logits:
    """Logits ``[len(ids), vocabulary]``, computed in chunks in slot 0."""
    return np.concatenate([run_all_rows(runner, [], chunk) for chunk in _chunks(0, ids)])


def run_all_rows(runner: LogitsRunner, rows: Sequence[DecodeRow], chunk: PrefillChunk | None) -> Logits:
    """The logits of every token of one step, those of the decode rows first; a copy."""
    plan = StepPlan(tuple(rows), (chunk,) if chunk else (), ())
    samples = tuple(Sample(row, row, 0, _GREEDY) for row in range(plan.num_tokens))
    return runner.logits(replace(plan, samples=samples)).copy()


def _chunks(slot: int, ids: list[int]) -> Iterator[PrefillChunk]:
    for start in range(0, len(ids), CHUNK_TOKENS):
        yield PrefillChunk(slot, start, ids[start : start + CHUNK_TOKENS])


def _decode_rows(traces: Sequence[Trace], num_tokens: int) -> list[DecodeRow]:
    return [
        DecodeRow(slot, trace.tokens[-1], len(trace.inputs))
        for slot, trace in enumerate(traces)
        if 0 < len(trace.tokens) < num_tokens
    ]


def _append(trace: Trace, row: Logits) -> None:
    trace.rows.append(row)
    trace.tokens.append(int(row.argmax()))
