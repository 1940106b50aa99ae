"""Models in both lowerings, and a stand-in for the scheduler that gives out blocks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_grpc.devices import CPU, Device
from llm_grpc.engine.step_plan import BlockCopy, BlockGrant, DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.export.job import Job
from llm_grpc.export.progress import show_progress
from llm_grpc.export.recipe import Lowering, Recipe, Weights
from llm_grpc.export.source import find_source
from llm_grpc.export.stages import stages_of
from llm_grpc.export.widen import widened
from llm_grpc.manifest import Manifest, load_manifest
from llm_grpc.runtime.paged_runner import PagedRunner
from llm_grpc.sampling_params import SamplingParams

BLOCK, CONTEXT = 16, 128
"""Tokens of a block in tests, and of a sequence."""

GREEDY = SamplingParams(max_tokens=1)


def exported(
    checkpoint: Path, model_dir: Path, lowering: Lowering, weights: Weights = "fp16", num_stages: int = 1
) -> Path:
    """Export without a verification."""
    model_dir.mkdir(parents=True)
    recipe = Recipe(weights, lowering=lowering, stages=num_stages)
    job = Job(find_source(str(checkpoint)), "model", model_dir, recipe)
    stages = stages_of(recipe)
    with show_progress(len(stages)) as progress:
        for _, stage in stages:
            stage(job, progress)
    return model_dir


@contextmanager
def in_fp32(model_dir: Path, block_size: int = BLOCK) -> Iterator[tuple[Path, Manifest]]:
    """The model as it is verified; a paged one in smaller blocks, which its graph leaves open."""
    with widened(model_dir, load_manifest(model_dir)) as (directory, manifest):
        size = block_size if manifest.lowering == "paged" else None
        yield directory, manifest.model_copy(update={"block_size": size})


@dataclass
class Paged:
    """A runner, and which of its blocks nobody has."""

    runner: PagedRunner
    free: list[int]
    tables: dict[int, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(
        directory: Path,
        manifest: Manifest,
        max_running: int = 6,
        seed: int = 0,
        max_step_tokens: int = 300,
        context_tokens: int = CONTEXT,
        devices: Sequence[Device] = (CPU,),
        num_micro_batches: int = 0,
    ) -> Paged:
        """Blocks for every slot, in random order."""
        block = manifest.block_size or BLOCK
        num_blocks = max_running * -(-context_tokens // block)
        runner = PagedRunner(
            directory,
            manifest,
            num_blocks,
            max_running,
            context_tokens,
            max_step_tokens,
            devices,
            threads=1,
            num_micro_batches=num_micro_batches,
        )
        free = list(range(num_blocks))
        random.Random(seed).shuffle(free)
        return Paged(runner, free)

    def grants(self, slot: int, num_tokens: int, block: int = BLOCK) -> tuple[BlockGrant, ...]:
        """Blocks for the first ``num_tokens`` tokens of a slot, beyond those it has."""
        table = self.tables.setdefault(slot, [])
        first = len(table)
        while len(table) * block < num_tokens:
            table.append(self.free.pop())
        return (BlockGrant(slot, first, tuple(table[first:])),) if len(table) > first else ()

    def share(self, slot: int, source: int, num_blocks: int) -> tuple[BlockGrant, ...]:
        """The first blocks of ``source`` become those of ``slot`` too."""
        self.tables[slot] = self.tables[source][:num_blocks]
        return (BlockGrant(slot, 0, tuple(self.tables[slot])),)

    def step(
        self,
        rows: Sequence[DecodeRow] = (),
        chunks: Sequence[PrefillChunk] = (),
        grants: tuple[BlockGrant, ...] = (),
        copies: tuple[BlockCopy, ...] = (),
    ) -> NDArray[np.float32]:
        """The logits of every token of one step, blocks for them included; a copy."""
        for row in rows:
            grants += self.grants(row.slot, row.position + 1)
        for chunk in chunks:
            grants += self.grants(chunk.slot, chunk.start + len(chunk.tokens))
        plan = StepPlan(tuple(rows), tuple(chunks), (), grants=grants, block_copies=copies)
        samples = tuple(Sample(row, row, 0, GREEDY) for row in range(plan.num_tokens))
        return self.runner.logits(replace(plan, samples=samples)).copy()
