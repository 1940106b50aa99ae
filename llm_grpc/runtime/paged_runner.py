"""The model runner of the paged lowering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.devices import CPU, Device
from llm_grpc.engine.micro_batches import MicroBatch, divide, joined
from llm_grpc.engine.step_plan import StepPlan, StepResult
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.adapters import Adapters, Stack
from llm_grpc.runtime.device_memory import Traffic
from llm_grpc.runtime.device_sampler import DeviceSampler
from llm_grpc.runtime.logits_memory import LogitsMemory, most_rows
from llm_grpc.runtime.paged_bindings import RowOutputs, largest
from llm_grpc.runtime.paged_stages import PagedStages, StagedStep
from llm_grpc.runtime.paged_step import BlockTables, PagedStep, bucket_of
from llm_grpc.runtime.pipeline import Pipeline, run_in_turn
from llm_grpc.runtime.session import RECORDED, is_for_gpu
from llm_grpc.runtime.staged_session import open_stages


@dataclass(frozen=True)
class _Part:
    """A micro-batch that is bound, and where its logits come."""

    batch: MicroBatch
    step: PagedStep
    outputs: RowOutputs
    binding: StagedStep
    graph: int | None


class PagedRunner:
    """Runs plans on a graph with one PagedAttention node a layer, over blocks of keys and values.

    Steps without chunks are filled up to one of a few sizes (``bucket_of``), each with inputs of its own at
    addresses that stay, and on a GPU each is recorded once and replayed if the manifest says that it can be.
    Other steps share one memory for inputs, and all steps one for logits. Tokens are chosen on the device:
    their ids come back, and logits only of rows where the device cannot tell what the host would draw or say.

    The stages of a model run on ``devices``, one each or all on one. Where those differ, a step is divided
    into ``num_micro_batches``, by itself as many as devices, so that each has one to compute.

    ``num_blocks`` of the cache are the scheduler's; there is one more, for rows that fill a step up.

    Raises:
        ManifestError: the graph is not what the manifest says, or needs a GPU.
        StartupError: there is no memory for the cache, or the devices are not as many as the stages.
    """

    def __init__(  # noqa: PLR0913 - the limits of one server
        self,
        model_dir: Path,
        manifest: Manifest,
        num_blocks: int,
        max_running: int,
        context_tokens: int,
        max_step_tokens: int,
        devices: Sequence[Device] = (CPU,),
        *,
        threads: int = 0,
        packs: bool = True,
        num_micro_batches: int = 0,
    ) -> None:
        if manifest.block_size is None:
            raise ManifestError(
                f"{model_dir} has the lowering {manifest.lowering}, and not paged: export it so"
            )
        if CPU in devices and is_for_gpu(manifest):
            raise ManifestError(
                f"{model_dir} computes in {manifest.kv_cache.dtype}, which needs an NVIDIA GPU, and the "
                "device is cpu: export it in fp32"
            )
        self._records = manifest.recordable
        options = RECORDED if self._records else None
        session = open_stages(model_dir, manifest, devices, threads, packs, options)
        self._vocabulary, self._device = manifest.vocabulary_size, session.devices[-1]
        self._context_tokens, self._max_step_tokens = context_tokens, max_step_tokens
        self.traffic = Traffic()
        self._stages = PagedStages(model_dir, manifest, session, num_blocks, self.traffic)
        self._places = -(-context_tokens // manifest.block_size)
        self._tables = BlockTables(max_running, self._places, manifest.block_size, num_blocks)
        self._max_running, self._num_stages = max_running, session.num_stages
        self._num_batches = num_micro_batches or len(set(session.devices))
        self._pipeline = Pipeline(self._num_stages) if min(self._num_batches, self._num_stages) > 1 else None
        self.sampler = DeviceSampler(model_dir, self._device, self.traffic)
        self._logits = [self._memory(most_rows(max_running)) for _ in range(self._num_batches)]
        self._outputs: dict[tuple[int, int], RowOutputs] = {}
        self._bindings: dict[tuple[int, int], StagedStep] = {}
        self._graphs: dict[tuple[int, int, bool], int] = {}
        room = manifest.adapters
        self._ranks = room.max_rank if room else 0
        self._stack: Stack | None = None
        self.adapters = Adapters(room, self._use_stack, is_fixed=True) if room else None
        if self.adapters:
            self._use_stack(self.adapters.stack({}))

    @property
    def num_binds(self) -> int:
        """Binds since the start; a counter for tests and benchmarks."""
        return sum(binding.num_binds for binding in self._bindings.values())

    @property
    def num_graphs(self) -> int:
        """Steps that are recorded, or would be on a GPU."""
        return len(self._graphs)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute the plan.

        Raises:
            ValueError: the plan is one that no scheduler may make, or a mask has no token.
        """
        parts = self._compute(plan)
        results = [self.sampler.result(part.outputs, part.step.rows, part.batch.plan) for part in parts]
        return joined(plan, [part.batch for part in parts], results)

    def logits(self, plan: StepPlan) -> NDArray[np.float32]:
        """Compute the plan and return the logits ``[len(plan.logit_rows), vocabulary]``.

        Raises:
            ValueError: the plan is one that no scheduler may make.
        """
        found = np.empty((len(plan.logit_rows), self._vocabulary), np.float32)
        for part in self._compute(plan):
            found[part.batch.places_in(plan)] = part.outputs.logits.read(part.step.rows)
        return found

    def _compute(self, plan: StepPlan) -> list[_Part]:
        self._check(plan)
        for grant in plan.grants:
            self._tables.grant(grant)
        for copy in plan.block_copies:
            self._stages.copy(copy)
        num_graphs = len(self._graphs)
        batches = divide(plan, self._num_batches)
        parts = [self._prepare(number, batch) for number, batch in enumerate(batches)]
        self._run(parts, records=len(self._graphs) > num_graphs)
        return parts

    def _prepare(self, number: int, batch: MicroBatch) -> _Part:
        """Bind what the next run of micro-batch ``number`` computes."""
        if batch.plan.chunks:
            step = self._tables.mixed_step(batch.plan)
        else:
            step = self._tables.decode_step(batch.plan, self._context_tokens)
        if self._stack:
            num_tokens = step.arrays[names.INPUT_IDS].size
            mask = self._stack.rows(batch.plan.decode, batch.plan.chunks, num_tokens)
            step.arrays[names.ADAPTER_ROWS] = mask
        outputs, binding = self._outputs_of(number, step.num_rows), self._binding_of(number, step)
        binding.put(step.arrays, outputs)
        return _Part(batch, step, outputs, binding, self._graph_of(number, step))

    def _use_stack(self, stack: Stack) -> None:
        self._stack = stack
        for memory in self._stages.adapters:
            memory.write(stack)

    def _run(self, parts: Sequence[_Part], records: bool) -> None:
        """Compute the parts; while a GPU ``records`` one, nothing else runs on any.

        Each stage has its thread, where there are several: what a thread has recorded may be its own.
        """
        groups = [[part] for part in parts] if records else [parts]
        for group in groups:
            run = partial(_run_stage, group)
            if self._pipeline:
                self._pipeline.run(len(group), run)
            else:
                run_in_turn(len(group), self._num_stages, run)

    def _check(self, plan: StepPlan) -> None:
        if plan.copies or plan.releases:
            raise ValueError("this is a bug: copies and releases of slots, and the lowering is paged")
        if not 0 < plan.num_tokens <= self._max_step_tokens:
            raise ValueError(
                f"this is a bug: a step of {plan.num_tokens} tokens, and the limit is {self._max_step_tokens}"
            )
        rows, most = len(plan.logit_rows), bucket_of(self._max_step_tokens)
        if rows > most:
            raise ValueError(f"this is a bug: a step of {rows} rows of logits, and the limit is {most}")
        if len(plan.decode) + len(plan.chunks) > self._max_running:
            raise ValueError(f"this is a bug: more sequences in a step than slots, {self._max_running}")

    def _memory(self, rows: int) -> LogitsMemory:
        return LogitsMemory(rows, self._vocabulary, self._device, self.traffic)

    def _outputs_of(self, number: int, rows: int) -> RowOutputs:
        key = number, rows
        if key not in self._outputs:
            logits = self._logits[number]
            if rows > logits.array.shape[0]:  # of verification, which asks for all rows
                logits = self._memory(rows)
            self._outputs[key] = RowOutputs(rows, logits, self._device, self.traffic)
        return self._outputs[key]

    def _binding_of(self, number: int, step: PagedStep) -> StagedStep:
        """That of the micro-batch's number and the step's size, or of all steps with chunks, under 0."""
        size = step.num_rows if step.decodes else 0
        if (number, size) not in self._bindings:
            tokens, sequences = (size, size) if size else (self._max_step_tokens, self._max_running)
            most = largest(tokens, sequences, self._places, bucket_of(tokens), self._ranks)
            self._bindings[number, size] = StagedStep(self._stages, most)
        return self._bindings[number, size]

    def _graph_of(self, number: int, step: PagedStep) -> int | None:
        """The number of the recorded step; None where steps differ in shape, or values inside of them do."""
        if not (self._records and step.decodes):
            return None
        return self._graphs.setdefault((number, step.num_rows, step.is_long), len(self._graphs) + 1)


def _run_stage(parts: Sequence[_Part], part: int, stage: int) -> None:
    parts[part].binding.run(stage, parts[part].graph)
