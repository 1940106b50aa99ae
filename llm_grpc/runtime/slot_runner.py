"""The model runner of the slots lowering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, StepPlan
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.bindings import StepBindings
from llm_grpc.runtime.interface import check_interface
from llm_grpc.runtime.sampler import sample_tokens
from llm_grpc.runtime.session import is_for_gpu, open_session
from llm_grpc.runtime.slot_pool import SlotPool


class SlotRunner:
    """Runs plans on a graph with two GroupQueryAttention nodes a layer: for the decode rows, for the chunk.

    The decode half's batch is slots 0 to the highest decoding one, so a slot in between that does not
    decode takes a dummy row; an idle half takes one dummy token. Dummies write where nothing is read:
    position 0 of a slot that the plan does not name, behind the chunk in the chunk's slot, the scratch slot.

    Raises:
        ManifestError: the graph is not what the manifest says, or needs a GPU.
        StartupError: there is no memory for the cache.
    """

    def __init__(
        self,
        model_dir: Path,
        manifest: Manifest,
        num_slots: int,
        context_tokens: int,
        threads: int = 0,
        packs: bool = True,
    ) -> None:
        if is_for_gpu(manifest):
            raise ManifestError(
                f"{model_dir} computes in {manifest.kv_cache.dtype}, which needs an NVIDIA GPU, and this "
                "build runs on CPUs: export it in fp32"
            )
        session = open_session(model_dir / manifest.graph, threads, packs)
        check_interface(session, manifest)
        self._vocabulary = manifest.vocabulary_size
        self._pool = SlotPool(manifest.kv_cache, num_slots, context_tokens)
        self._bindings = StepBindings(session, self._pool)

    @property
    def num_binds(self) -> int:
        """Binds since the start; a counter for tests and benchmarks."""
        return self._bindings.num_binds

    def run(self, plan: StepPlan) -> Sequence[int]:
        """Compute the plan and return one token id for each of its samples."""
        return sample_tokens(self.logits(plan), plan.samples)

    def logits(self, plan: StepPlan) -> NDArray[np.float32]:
        """Compute the plan and return the logits ``[samples, vocabulary]``, valid until the next run."""
        decode, chunk = _halves(plan)
        rows = [_packed_row(sample.row, plan, decode) for sample in plan.samples]
        self._put(decode, chunk, rows or [0])
        logits = self._bindings.logits(max(len(rows), 1), self._vocabulary)
        self._bindings.run()
        return logits[: len(rows)]

    def _put(self, decode: list[DecodeRow], chunk: PrefillChunk, rows: list[int]) -> None:
        put, length = self._bindings.put, len(chunk.tokens)
        past = [row.position for row in decode]
        put(names.INPUT_IDS, [[*(row.token for row in decode), *chunk.tokens]], np.int64)
        put(names.POSITION_IDS, [[*past, *range(chunk.start, chunk.start + length)]], np.int64)
        put(names.LOGIT_ROWS, rows, np.int64)
        put(names.NUM_DECODE, [len(decode)], np.int64)
        put(names.DECODE_END, [max(len(decode), 1)], np.int64)
        put(names.DECODE_SEQLENS, past or [0], np.int32)
        put(names.DECODE_TOTAL, max(past, default=0) + 1, np.int32)
        put(names.CHUNK_SEQLENS, [chunk.start + length - 1], np.int32)
        put(names.CHUNK_TOTAL, chunk.start + length, np.int32)
        self._bindings.put_slots("decode", decode[0].slot if decode else self._pool.scratch, len(decode) or 1)
        self._bindings.put_slots("chunk", chunk.slot, 1)


def _halves(plan: StepPlan) -> tuple[list[DecodeRow], PrefillChunk]:
    """What each half of the graph computes. Without a chunk, the last decode row is one of one token."""
    rows = _dense(plan) if plan.decode else []
    if plan.chunk:
        return rows, plan.chunk
    last = rows.pop()
    return rows, PrefillChunk(last.slot, last.position, (last.token,))


def _dense(plan: StepPlan) -> list[DecodeRow]:
    """The decode rows in slot order, with a dummy in every hole and at least one row."""
    by_slot = {row.slot: row for row in plan.decode}
    end = max(by_slot, default=0) + 1
    return [by_slot.get(slot) or _dummy(slot, plan.chunk) for slot in range(end)]


def _dummy(slot: int, chunk: PrefillChunk | None) -> DecodeRow:
    behind_chunk = chunk.start + len(chunk.tokens) if chunk and chunk.slot == slot else 0
    return DecodeRow(slot, 0, behind_chunk)


def _packed_row(row: int, plan: StepPlan, decode: list[DecodeRow]) -> int:
    """The plan's packed row, moved by the dummies before it."""
    if row < len(plan.decode):
        return plan.decode[row].slot
    return row - len(plan.decode) + len(decode)
