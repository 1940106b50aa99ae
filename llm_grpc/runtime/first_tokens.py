"""Decode rows for slots that do not decode: rows that write what is there already."""

from __future__ import annotations

from llm_grpc.engine.step_plan import DecodeRow, StepPlan


class FirstTokens:
    """Remembers the first token of what each slot holds, and the adapter that computed it.

    The key and the value at position 0 of any layer depend on these and on nothing else. So a row with that
    token at that position writes what the slot holds already, and attends to one token.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, int]] = {}

    def decode_rows(self, plan: StepPlan) -> list[DecodeRow]:
        """The plan's decode rows by slot, from the lowest decoding one to the highest.

        A slot between them that does not decode gets a row that changes nothing, beside its chunk too, once
        the copies are done of the plan that was remembered last: ``plan`` or what it is a part of.
        """
        rows = {row.slot: row for row in plan.decode}
        slots = range(min(rows), max(rows) + 1) if rows else ()
        return [rows.get(slot) or self._dummy(slot) for slot in slots]

    def remember(self, plan: StepPlan) -> None:
        """Take note of what ``plan`` copies and begins; once for each plan."""
        for copy in plan.copies:
            self._rows[copy.target] = self._rows.get(copy.source, (0, 0))
        if plan.chunk and plan.chunk.start == 0:
            self._rows[plan.chunk.slot] = plan.chunk.tokens[0], plan.chunk.adapter

    def _dummy(self, slot: int) -> DecodeRow:
        token, adapter = self._rows.get(slot, (0, 0))
        return DecodeRow(slot, token, 0, adapter)
