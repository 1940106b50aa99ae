"""A step as several smaller ones, so that each stage of a model can compute another one at the same time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, StepPlan


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of a plan; ``samples`` are the places of its samples among those of the whole."""

    plan: StepPlan
    samples: tuple[int, ...]


_Unit = DecodeRow | PrefillChunk


def divide(plan: StepPlan, count: int) -> list[MicroBatch]:
    """At most ``count`` parts of ``plan``, none empty, to be computed in their order.

    Decode rows are divided by slot, lowest first; chunks stay whole and come after them, in their order. The
    parts are as equal in tokens as that allows. What is done before a plan is computed is all in the first.
    """
    if count == 1:
        return [MicroBatch(plan, tuple(range(len(plan.samples))))]
    units: list[_Unit] = [*plan.decode, *plan.chunks]
    groups = _groups(units, len(plan.decode), count)
    samples = _moved(plan.samples, units, groups)
    first, *others = (
        MicroBatch(_part([units[index] for index in group], chosen), tuple(chosen))
        for group, chosen in zip(groups, samples, strict=True)
    )
    before = replace(
        first.plan,
        copies=plan.copies,
        releases=plan.releases,
        grants=plan.grants,
        block_copies=plan.block_copies,
    )
    return [replace(first, plan=before), *others]


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
    samples: Sequence[Sample], units: Sequence[_Unit], groups: Sequence[Sequence[int]]
) -> list[dict[int, Sample]]:
    """For each group its samples by their places in ``samples``, with rows of the group's own."""
    starts = [0, *accumulate(map(_length, units))]
    found: list[dict[int, Sample]] = [{} for _ in groups]
    place: dict[int, tuple[int, int]] = {}
    for part, group in enumerate(groups):
        new_starts = accumulate((_length(units[index]) for index in group), initial=0)
        place.update((index, (part, start)) for index, start in zip(group, new_starts, strict=False))
    for number, sample in enumerate(samples):
        index = bisect_right(starts, sample.row) - 1
        part, start = place[index]
        found[part][number] = replace(sample, row=start + sample.row - starts[index])
    return found


def _part(units: Sequence[_Unit], samples: dict[int, Sample]) -> StepPlan:
    rows = tuple(unit for unit in units if isinstance(unit, DecodeRow))
    chunks = tuple(unit for unit in units if isinstance(unit, PrefillChunk))
    return StepPlan(rows, chunks, tuple(samples.values()))


def _length(unit: _Unit) -> int:
    return 1 if isinstance(unit, DecodeRow) else len(unit.tokens)
