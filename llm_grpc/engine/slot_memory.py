"""How much memory the slots have, in tokens of their keys and values."""

from __future__ import annotations

from llm_grpc.engine.step_plan import SlotRelease


class SlotMemory:
    """Each slot counts as the most positions of it that were written since they were last given back
    (``touched``), or that its request may come to write (``promised``), whichever is more.

    The sum is at most ``max_tokens`` whenever a step is planned. ``releases`` give memory back before the
    next run; nothing counts that they name, for nothing is written before them.
    """

    def __init__(self, num_slots: int, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._touched = [0] * num_slots
        self._promised = [0] * num_slots
        self._releases: list[SlotRelease] = []

    @property
    def num_tokens(self) -> int:
        """The sum over all slots."""
        return sum(map(max, self._touched, self._promised))

    @property
    def num_missing(self) -> int:
        """By how much the sum is too high; at most 0 where it is not."""
        return self.num_tokens - self.max_tokens

    @property
    def num_unpromised(self) -> int:
        """What a newcomer can be promised if all that nobody owns is given up."""
        return self.max_tokens - sum(self._promised)

    @property
    def releases(self) -> tuple[SlotRelease, ...]:
        """What the next run has to give back first."""
        return tuple(self._releases)

    def touched(self, slot: int) -> int:
        """Positions of a slot, from 0 on, that have memory."""
        return self._touched[slot]

    def promised(self, slot: int) -> int:
        """Positions that the slot's request may write; 0 where it has none."""
        return self._promised[slot]

    def promise(self, slot: int, num_tokens: int) -> None:
        """The slot's request may write so many positions; 0 takes the promise back."""
        self._promised[slot] = num_tokens

    def fits(self, slot: int, num_tokens: int) -> bool:
        """Whether a free slot can be promised so many tokens without anything being given back."""
        return self.num_missing + max(0, num_tokens - self._touched[slot]) <= 0

    def touch(self, slot: int, num_tokens: int) -> None:
        """The first ``num_tokens`` positions are written."""
        self._touched[slot] = max(self._touched[slot], num_tokens)

    def release(self, slot: int, num_kept: int) -> None:
        """Give back what is behind the first ``num_kept`` positions, before the next run."""
        self._touched[slot] = num_kept
        self._releases.append(SlotRelease(slot, num_kept))

    def released(self) -> None:
        """The run with ``releases`` was a good one."""
        self._releases.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError where slots have more memory than there is."""
        assert self.num_tokens <= self.max_tokens, (
            f"this is a bug: slots have memory of {self.num_tokens} tokens, and there is {self.max_tokens}"
        )
