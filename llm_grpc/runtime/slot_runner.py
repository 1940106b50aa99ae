"""The model runner of the slots lowering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.devices import CPU, Device
from llm_grpc.engine.micro_batches import divide
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, StepPlan, StepResult
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.adapters import Adapters, Stack
from llm_grpc.runtime.bindings import StepBindings
from llm_grpc.runtime.first_tokens import FirstTokens
from llm_grpc.runtime.interface import check_interface
from llm_grpc.runtime.pipeline import Pipeline, run_in_turn
from llm_grpc.runtime.session import is_for_gpu
from llm_grpc.runtime.slot_pool import SlotPool
from llm_grpc.runtime.staged_session import open_stages
from llm_grpc.runtime.token_scores import step_result


class SlotRunner:
    """Runs plans on a graph with two GroupQueryAttention nodes a layer: for the decode rows, for the chunk.

    The decode half's batch is the slots from the lowest decoding one to the highest. A slot in between that
    does not decode takes a dummy row, which writes what is there already (``FirstTokens``). Where there is no
    chunk, its half takes the last decode row, or a dummy of the scratch slot if its cache is int8: that half
    widens all that its slot holds. Where nothing decodes, the decode half computes the chunk's first token
    once more, into the scratch slot.

    The stages of a model run on ``devices``, one each or all on one. Where those differ, a step is divided
    into ``num_micro_batches``, by itself as many as devices, so that each has one to compute.

    Raises:
        ManifestError: the graph is not what the manifest says, or needs a GPU.
        StartupError: there is no memory for the cache, or the devices are not as many as the stages.
    """

    def __init__(  # noqa: PLR0913 - what is computed, and where
        self,
        model_dir: Path,
        manifest: Manifest,
        num_slots: int,
        context_tokens: int,
        threads: int = 0,
        packs: bool = True,
        *,
        devices: Sequence[Device] = (CPU,),
        num_micro_batches: int = 0,
    ) -> None:
        if is_for_gpu(manifest):
            raise ManifestError(
                f"{model_dir} computes in {manifest.kv_cache.dtype}, which needs an NVIDIA GPU, and this "
                "build runs on CPUs: export it in fp32"
            )
        session = open_stages(model_dir, manifest, devices, threads, packs)
        check_interface(session, manifest)
        self._has_wide_cache = manifest.kv_cache.dtype != "int8"
        self._vocabulary = manifest.vocabulary_size
        self._pool = SlotPool(manifest.kv_cache, num_slots, context_tokens)
        self._num_stages = session.num_stages
        num_batches = num_micro_batches or len(set(session.devices))
        self._bindings = [StepBindings(session, self._pool) for _ in range(num_batches)]
        self._pipeline = Pipeline(self._num_stages) if min(num_batches, self._num_stages) > 1 else None
        self._first_tokens = FirstTokens()
        self._stack: Stack | None = None
        self.adapters = Adapters(manifest.adapters, self._use_stack) if manifest.adapters else None
        if self.adapters:
            self._use_stack(self.adapters.stack({}))

    @property
    def num_binds(self) -> int:
        """Binds since the start; a counter for tests and benchmarks."""
        return sum(bindings.num_binds for bindings in self._bindings)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute the plan.

        Raises:
            ValueError: a mask has no token.
        """
        return step_result(plan, self.logits(plan))

    def logits(self, plan: StepPlan) -> NDArray[np.float32]:
        """Compute the plan; its logits ``[len(plan.logit_rows), vocabulary]``, valid until the next run."""
        for release in plan.releases:
            self._pool.release(release.slot, release.num_kept)
        for copy in plan.copies:
            self._pool.copy(copy.source, copy.target, copy.num_tokens)
        self._first_tokens.remember(plan)
        parts = divide(plan, len(self._bindings))
        found = [self._prepare(part.plan, at) for part, at in zip(parts, self._bindings, strict=False)]
        self._run(len(parts))
        if len(parts) == 1:
            return found[0]
        logits = np.empty((len(plan.logit_rows), self._vocabulary), np.float32)
        for part, rows in zip(parts, found, strict=True):
            logits[part.places_in(plan)] = rows
        return logits

    def _use_stack(self, stack: Stack) -> None:
        self._stack = stack
        for bindings in self._bindings:
            bindings.bind_inputs(stack.arrays)

    def _prepare(self, plan: StepPlan, bindings: StepBindings) -> NDArray[np.float32]:
        """Bind what the next run of ``bindings`` computes; returns where its logits come."""
        decode, chunk = self._halves(self._first_tokens.decode_rows(plan), plan.chunk)
        rows = _packed_rows(plan, decode)
        self._put(bindings, decode, chunk, rows or [0])
        return bindings.logits(max(len(rows), 1), self._vocabulary)[: len(rows)]

    def _run(self, num_batches: int) -> None:
        def compute(batch: int, stage: int) -> None:
            self._bindings[batch].run(stage)

        if self._pipeline and num_batches > 1:
            self._pipeline.run(num_batches, compute)
        else:
            run_in_turn(num_batches, self._num_stages, compute)

    def _halves(
        self, rows: list[DecodeRow], chunk: PrefillChunk | None
    ) -> tuple[list[DecodeRow], PrefillChunk]:
        """What each half of the graph computes."""
        if chunk:
            return rows, chunk
        if not self._has_wide_cache:
            return rows, PrefillChunk(self._pool.scratch, 0, (0,))
        *others, last = rows
        return others, PrefillChunk(last.slot, last.position, (last.token,), adapter=last.adapter)

    def _put(
        self, bindings: StepBindings, decode: list[DecodeRow], chunk: PrefillChunk, rows: list[int]
    ) -> None:
        put, length = bindings.put, len(chunk.tokens)
        past = [row.position for row in decode]
        put(names.INPUT_IDS, [[*(row.token for row in decode), *chunk.tokens]], np.int64)
        put(names.POSITION_IDS, [[*past, *range(chunk.start, chunk.start + length)]], np.int64)
        put(names.LOGIT_ROWS, rows, np.int64)
        if self._stack:
            put(names.ADAPTER_ROWS, self._stack.rows(decode, [chunk], len(decode) + length), np.float32)
        put(names.NUM_DECODE, [len(decode)], np.int64)
        put(names.DECODE_END, [max(len(decode), 1)], np.int64)
        put(names.DECODE_SEQLENS, past or [0], np.int32)
        put(names.DECODE_TOTAL, max(past, default=0) + 1, np.int32)
        put(names.CHUNK_SEQLENS, [chunk.start + length - 1], np.int32)
        put(names.CHUNK_TOTAL, chunk.start + length, np.int32)
        bindings.put_slots("decode", decode[0].slot if decode else self._pool.scratch, len(decode) or 1)
        bindings.put_slots("chunk", chunk.slot, 1)


def _packed_rows(plan: StepPlan, decode: list[DecodeRow]) -> list[int]:
    """The packed rows of which logits are asked, moved by the dummies before them."""
    lowest = min((row.slot for row in plan.decode), default=0)
    moved = [row.slot - lowest for row in plan.decode]
    behind = len(decode) - len(plan.decode)
    return [moved[row] if row < len(moved) else row + behind for row in plan.logit_rows]
