"""Results on disk: JSON, and the page that is made of it. Models may be measured one at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import ModelResult
from benchmarks.gpu.table import page
from benchmarks.gpu.works import Work


@dataclass(frozen=True)
class Kept:
    """Results of one machine and one commit."""

    day: str
    commit: str
    machine: Machine
    results: list[ModelResult]


def save(directory: Path, found: Kept, works: Sequence[Work]) -> None:
    """Write NAME.json and NAME.md, NAME that of the GPU.

    Results of other models of the same commit that are there already stay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{'-'.join(found.machine.gpu.lower().split())}.json"
    results = [*_of_others(path, found), *found.results]
    results.sort(key=lambda result: result.model)
    kept = Kept(found.day, found.commit, found.machine, results)
    path.write_text(json.dumps(asdict(kept), indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(kept.day, kept.machine, results, works), encoding="utf-8")


def _of_others(path: Path, found: Kept) -> list[ModelResult]:
    if not path.exists():
        return []
    before = TypeAdapter(Kept).validate_json(path.read_bytes())
    models = {result.model for result in found.results}
    return [r for r in before.results if before.commit == found.commit and r.model not in models]
