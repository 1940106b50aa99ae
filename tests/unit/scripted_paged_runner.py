"""A model runner of blocks without a model: each place of a block knows what was written before it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from llm_grpc.engine.step_plan import StepPlan, StepResult
from llm_grpc.engine.warm_up import WARM_UP
from tests.unit.scripted_runner import BrokenPlan, ScriptedRunner, hashed

Cell = tuple[int, int]
"""A token, and a checksum of all tokens up to and with it: keys and values depend on those too."""


class ScriptedPagedRunner(ScriptedRunner):
    """Keeps ``Cell``s by block and refuses a plan that reads anything but one sequence's tokens in turn.

    It knows its tables from grants alone. ``references`` says how many hold a block: one that several hold
    must not be written to.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        next_token: Callable[[Sequence[int]], int] = hashed,
        references: Callable[[int], int] = lambda block: 1,
    ) -> None:
        super().__init__(next_token)
        self.block_size = block_size
        self.blocks: list[list[Cell | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.tables: dict[int, list[int]] = {}
        self._references = references

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step, as ``ModelRunner`` says; those of a warm-up too."""
        if plan.samples and plan.samples[0].params is WARM_UP:
            self._write(plan)
        return super().run(plan)

    def tokens(self, slot: int, num_tokens: int) -> list[int]:
        """The first tokens of a slot, one after the other as they were written."""
        tokens: list[int] = []
        before = 0
        for position in range(num_tokens):
            block, place = self._cell(slot, position)
            cell = self.blocks[block][place]
            if cell is None or cell[1] != _checksum(before, cell[0]):
                raise BrokenPlan(f"slot {slot} reads {cell} at {position}, behind {tokens}")
            tokens.append(cell[0])
            before = cell[1]
        return tokens

    def spoil(self, plan: StepPlan) -> None:
        """Fail as late as can be: all changes are made, and what was to be written is anything."""
        self._change(plan)
        for slot, start, tokens in _written(plan):
            for position in range(start, start + len(tokens)):
                block, place = self._cell(slot, position)
                self.blocks[block][place] = (-1, -1)

    def _write(self, plan: StepPlan) -> list[list[int]]:
        self._change(plan)
        written = list(_written(plan))
        slots = [slot for slot, _, _ in written]
        if not slots or len(slots) != len(set(slots)):
            raise BrokenPlan(f"a slot twice, or none, in {plan}")
        histories: list[list[int]] = []
        held = [self.tokens(slot, start) for slot, start, _ in written]
        for (slot, start, tokens), history in zip(written, held, strict=True):
            before = self._checksum_of(slot, start)
            for count, token in enumerate(tokens, 1):
                before = _checksum(before, token)
                self._put(slot, start + count - 1, (token, before))
                histories.append([*history, *tokens[:count]])
        for slot, start, tokens in written:
            self.tokens(slot, start + len(tokens))  # nobody wrote where somebody else did
        if len(histories) != plan.num_tokens:
            raise BrokenPlan(f"num_tokens is wrong in {plan}")
        return histories

    def _change(self, plan: StepPlan) -> None:
        """Do grants and copies."""
        if plan.copies or plan.releases:
            raise BrokenPlan(f"copies or releases of slots in {plan}")
        for grant in plan.grants:
            table = self.tables.setdefault(grant.slot, [])
            if grant.first > len(table) or not grant.blocks:
                raise BrokenPlan(f"{grant} leaves a hole behind {len(table)} places")
            table[grant.first : grant.first + len(grant.blocks)] = grant.blocks
        for copy in plan.block_copies:
            self.blocks[copy.target] = self.blocks[copy.source][:]

    def _put(self, slot: int, position: int, cell: Cell) -> None:
        block, place = self._cell(slot, position)
        if self._references(block) != 1:
            raise BrokenPlan(f"slot {slot} writes to block {block}, which {self._references(block)} hold")
        self.blocks[block][place] = cell

    def _cell(self, slot: int, position: int) -> tuple[int, int]:
        index, place = divmod(position, self.block_size)
        table = self.tables.get(slot, [])
        if index >= len(table):
            raise BrokenPlan(f"slot {slot} has {len(table)} blocks, and none for position {position}")
        return table[index], place

    def _checksum_of(self, slot: int, num_tokens: int) -> int:
        if not num_tokens:
            return 0
        block, place = self._cell(slot, num_tokens - 1)
        cell = self.blocks[block][place]
        return cell[1] if cell else 0


def _written(plan: StepPlan) -> list[tuple[int, int, Sequence[int]]]:
    """Slot, first position and tokens of all that a plan writes, as it is packed."""
    rows = [(row.slot, row.position, (row.token,)) for row in plan.decode]
    return [*rows, *((chunk.slot, chunk.start, chunk.tokens) for chunk in plan.chunks)]


def _checksum(before: int, token: int) -> int:
    return zlib.crc32(token.to_bytes(8, "little", signed=True), before)
