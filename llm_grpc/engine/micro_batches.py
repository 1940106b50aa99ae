"""A step as several smaller ones, so that each stage of a model can compute another one at the same time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, Score, StepPlan, StepResult, TokenScore


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of a plan; ``samples`` and ``scores`` are the places of its own among those of the whole."""

    plan: StepPlan
    samples: tuple[int, ...]
    scores: tuple[int, ...] = ()

    def places_in(self, whole: StepPlan) -> list[int]:
        """Where each of ``plan.logit_rows`` is among those of ``whole``, which this is a part of."""
        return [*self.samples, *(len(whole.samples) + place for place in self.scores)]


_Unit = DecodeRow | PrefillChunk
_Asked = TypeVar("_Asked", Sample, Score)


def divide(plan: StepPlan, count: int) -> list[MicroBatch]:
    """At most ``count`` parts of ``plan``, none empty, to be computed in their order.

    Decode rows are divided by slot, lowest first; chunks stay whole and come after them, in their order. The
    parts are as equal in tokens as that allows. What is done before a plan is computed is all in the first.
    """
    if count == 1:
        return [MicroBatch(plan, tuple(range(len(plan.samples))), tuple(range(len(plan.scores))))]
    units: list[_Unit] = [*plan.decode, *plan.chunks]
    groups = _groups(units, len(plan.decode), count)
    samples, scores = _moved(plan.samples, units, groups), _moved(plan.scores, units, groups)
    first, *others = (
        MicroBatch(_part([units[index] for index in group], chosen, scored), tuple(chosen), tuple(scored))
        for group, chosen, scored in zip(groups, samples, scores, strict=True)
    )
    before = replace(
        first.plan,
        copies=plan.copies,
        releases=plan.releases,
        grants=plan.grants,
        block_copies=plan.block_copies,
    )
    return [replace(first, plan=before), *others]


def joined(plan: StepPlan, parts: Sequence[MicroBatch], results: Sequence[StepResult]) -> StepResult:
    """What a run of ``plan`` found, from what those of its parts did."""
    tokens = [0] * len(plan.samples)
    scores = [_UNKNOWN] * len(plan.scores)
    logprobs: dict[int, TokenScore] = {}
    for part, result in zip(parts, results, strict=True):
        logprobs.update((part.samples[place], found) for place, found in result.logprobs.items())
        for place, token in zip(part.samples, result.tokens, strict=True):
            tokens[place] = token
        for place, score in zip(part.scores, result.scores, strict=True):
            scores[place] = score
    return StepResult(tokens, logprobs, tuple(scores))


_UNKNOWN = TokenScore(0.0)
"""Of a place that a part fills: every one is of some part."""


def _groups(units: Sequence[_Unit], num_decode: int, count: int) -> list[list[int]]:
    """Indices of the units, by which of ``count`` equal parts of the tokens a unit's middle lies in."""
    rows = sorted(range(num_decode), key=lambda index: units[index].slot)
    order = [*rows, *range(num_decode, len(units))]
    ends = list(accumulate(_length(units[index]) for index in order))
    groups: dict[int, list[int]] = {}
    for index, end in zip(order, ends, strict=True):
        part = (2 * end - _length(units[index])) * count // (2 * ends[-1])
        groups.setdefault(part, []).append(index)
    return list(groups.values())


def _moved(
    asked: Sequence[_Asked], units: Sequence[_Unit], groups: Sequence[Sequence[int]]
) -> list[dict[int, _Asked]]:
    """For each group what is asked of it, by places in ``asked``, with rows of the group's own."""
    starts = [0, *accumulate(map(_length, units))]
    found: list[dict[int, _Asked]] = [{} for _ in groups]
    place: dict[int, tuple[int, int]] = {}
    for part, group in enumerate(groups):
        new_starts = accumulate((_length(units[index]) for index in group), initial=0)
        place.update((index, (part, start)) for index, start in zip(group, new_starts, strict=False))
    for number, one in enumerate(asked):
        index = bisect_right(starts, one.row) - 1
        part, start = place[index]
        found[part][number] = one._replace(row=start + one.row - starts[index])
    return found


def _part(units: Sequence[_Unit], samples: dict[int, Sample], scores: dict[int, Score]) -> StepPlan:
    rows = tuple(unit for unit in units if isinstance(unit, DecodeRow))
    chunks = tuple(unit for unit in units if isinstance(unit, PrefillChunk))
    return StepPlan(rows, chunks, tuple(samples.values()), scores=tuple(scores.values()))


def _length(unit: _Unit) -> int:
    return 1 if isinstance(unit, DecodeRow) else len(unit.tokens)
