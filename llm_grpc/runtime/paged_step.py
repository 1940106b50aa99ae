"""From a plan to the arrays that a step over blocks reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.engine.step_plan import LONG_CONTEXT, BlockGrant, DecodeRow, PrefillChunk, StepPlan

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PagedStep:
    """The inputs of a step, by their names.

    If it ``decodes``, the shapes are those of every step of as many rows, and it may be recorded once for all
    of them that are as long: ``is_long`` says that the kernel shares sequences out among the parts of a GPU,
    which it does where it is told that the longest sequence of all steps recorded as one has more tokens.
    """

    arrays: Arrays
    decodes: bool
    is_long: bool
    rows: tuple[int, ...]
    """Where the logits of the plan's samples are, and then of its scores."""

    @property
    def num_rows(self) -> int:
        """Rows of logits."""
        return len(self.arrays[names.LOGIT_ROWS])


def bucket_of(count: int) -> int:
    """The least number from ``count`` on that is a power of two, or half more: 1, 2, 3, 4, 6, 8, 12, …"""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


class BlockTables:
    """The blocks of ``max_running`` slots, ``places`` each; ``scratch`` is the block that nobody owns."""

    def __init__(self, max_running: int, places: int, block_size: int, scratch: int) -> None:
        self._table = np.full((max_running, places), scratch, np.int32)
        self._block_size, self._scratch = block_size, scratch

    def grant(self, grant: BlockGrant) -> None:
        """Do what a grant says.

        Raises:
            ValueError: there is no such slot, place or block.
        """
        slots, places = self._table.shape
        end = grant.first + len(grant.blocks)
        if not (0 <= grant.slot < slots and grant.first >= 0 and end <= places):
            raise ValueError(f"this is a bug: {grant} is outside the table of {slots} x {places}")
        if any(not 0 <= block < self._scratch for block in grant.blocks):
            raise ValueError(f"this is a bug: {grant} names a block outside {self._scratch}")
        self._table[grant.slot, grant.first : end] = grant.blocks

    def decode_step(self, plan: StepPlan, context_tokens: int) -> PagedStep:
        """The step of a plan without chunks, filled up with rows to the next bucket.

        A row that fills up is the first token of a sequence of its own in the scratch block, which it writes
        and reads: every number of it is defined, all such rows write the same, and each sequence has exactly
        one token, which the kernel for long contexts asks for. A row that writes nothing would read memory
        that nobody set, and tokens behind the last sequence's end have no position.
        """
        rows, count = plan.decode, bucket_of(len(plan.decode))
        positions = _filled([row.position for row in rows], count)
        table = np.full((count, self._table.shape[1]), self._scratch, np.int32)
        table[: len(rows)] = self._table[[row.slot for row in rows]]
        longest = int(positions.max()) + 1
        is_long = longest > LONG_CONTEXT
        arrays: Arrays = {
            names.INPUT_IDS: _filled([row.token for row in rows], count)[None],
            names.POSITION_IDS: positions[None],
            names.LOGIT_ROWS: np.arange(count),
            names.SEQUENCE_ENDS: np.arange(count + 1, dtype=np.int32),
            names.PAST_LENGTHS: positions.astype(np.int32),
            names.BLOCK_TABLE: table,
            names.SLOT_MAPPING: self._mapping(table, np.arange(count), positions, len(rows)),
            names.ATTENTION_BOUNDS: _bounds(1, context_tokens, LONG_CONTEXT + 1 if is_long else 0),
        }
        return PagedStep(arrays, True, is_long, plan.logit_rows)

    def mixed_step(self, plan: StepPlan) -> PagedStep:
        """The step of a plan with chunks; the rows of logits are filled up with the first token's."""
        parts = [_as_chunk(row) for row in plan.decode] + list(plan.chunks)
        lengths = [len(part.tokens) for part in parts]
        starts = [part.start for part in parts]
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
        table = self._table[[part.slot for part in parts]]
        sequences = np.repeat(np.arange(len(parts)), lengths)
        wanted = plan.logit_rows
        longest = max(start + length for start, length in zip(starts, lengths, strict=True))
        arrays: Arrays = {
            names.INPUT_IDS: np.concatenate([np.asarray(part.tokens, np.int64) for part in parts])[None],
            names.POSITION_IDS: positions[None],
            names.LOGIT_ROWS: _filled(wanted, bucket_of(max(len(wanted), 1))),
            names.SEQUENCE_ENDS: np.array([0, *accumulate(lengths)], np.int32),
            names.PAST_LENGTHS: np.array(starts, np.int32),
            names.BLOCK_TABLE: table,
            names.SLOT_MAPPING: self._mapping(table, sequences, positions, len(positions)),
            names.ATTENTION_BOUNDS: _bounds(max(lengths), longest, longest),
        }
        return PagedStep(arrays, False, longest > LONG_CONTEXT, tuple(range(len(wanted))))

    def _mapping(
        self, table: NDArray[np.int32], sequences: NDArray[Any], positions: NDArray[np.int64], real: int
    ) -> NDArray[np.int32]:
        """Where each token is written; ValueError where one of the first ``real`` has no block."""
        places = positions // self._block_size
        if int(places.max()) >= table.shape[1]:
            raise ValueError(f"this is a bug: position {positions.max()} is outside the table")
        blocks = table[sequences, places]
        if (blocks[:real] == self._scratch).any():
            raise ValueError("this is a bug: a token is written where its slot has no block")
        mapping: NDArray[np.int32] = (blocks * self._block_size + positions % self._block_size).astype(
            np.int32
        )
        return mapping


def _filled(values: Sequence[int], count: int) -> NDArray[np.int64]:
    filled = np.zeros(count, np.int64)
    filled[: len(values)] = values
    return filled


def _bounds(query: int, keys: int, least_keys: int) -> NDArray[np.int32]:
    return np.array([query, keys, least_keys], np.int32)


def _as_chunk(row: DecodeRow) -> PrefillChunk:
    return PrefillChunk(row.slot, row.position, (row.token,))
