"""Which tokens every slot holds: a prompt whose beginning is there already is not computed again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from llm_grpc.engine.common_prefix import common_prefix
from llm_grpc.engine.slot_memory import SlotMemory
from llm_grpc.engine.step_plan import SlotCopy


@dataclass(slots=True)
class _Slot:
    """``tokens`` have their keys and values in the slot, from position 0 on. Requests with ``salt`` may use
    them, none where it is None. The free slot that was ``last_used`` longest ago is given up first.
    """

    tokens: list[int] = field(default_factory=list)
    salt: str | None = None
    last_used: int = 0


class SlotTable:
    """The scheduler's books on the slots, free ones and owned ones.

    They say what the memory holds once ``copies`` are done, one after the other, before the next run. A free
    slot keeps its tokens until somebody takes it, or needs its ``memory``. ``num_copies`` counts all copies
    there were.
    """

    def __init__(self, num_slots: int, max_tokens: int) -> None:
        self.memory = SlotMemory(num_slots, max_tokens)
        self._slots = tuple(_Slot() for _ in range(num_slots))
        self._free = set(range(num_slots))
        self._uses = itertools.count(1)
        self._copies: list[SlotCopy] = []
        self.num_copies = 0

    @property
    def free(self) -> AbstractSet[int]:
        """Slots that nobody owns."""
        return self._free

    @property
    def copies(self) -> tuple[SlotCopy, ...]:
        """What the next run has to copy first, in this order."""
        return tuple(self._copies)

    @property
    def settled(self) -> Iterator[int]:
        """Slots that no copy of the next run reads or writes."""
        copied = {slot for copy in self._copies for slot in (copy.source, copy.target)}
        return (slot for slot in range(len(self._slots)) if slot not in copied)

    def tokens(self, slot: int) -> Sequence[int]:
        """The tokens that a slot holds."""
        return self._slots[slot].tokens

    def best(self, prompt: list[int], salt: str | None) -> int:
        """The free slot that is missed least: one whose tokens all begin the prompt, the longest of them;
        else the lowest empty one; else the one used longest ago.
        """
        return min(self._free, key=lambda each: self._loss(each, prompt, salt))

    def donor(self, slot: int, prompt: list[int], salt: str | None) -> int:
        """The slot that holds most of the prompt's beginning; ``slot`` where none has more than it."""
        return self._longest(slot, prompt, salt)[0]

    def take(self, slot: int) -> None:
        """Make a free slot owned."""
        self._free.remove(slot)

    def load(self, slot: int, prompt: list[int], salt: str | None) -> int:
        """Make an owned slot hold as much of the prompt as any slot of its salt does, and nothing else.

        Returns how many tokens that is: at most all but the last one, which is left to compute. None are
        looked for, and what the slot will hold is nobody else's, where ``salt`` is None.
        """
        donor, length = self._longest(slot, prompt, salt)
        if donor != slot:
            self._copy(donor, slot, length)
        self._slots[slot].tokens, self._slots[slot].salt = prompt[:length], salt
        return length

    def append(self, slot: int, tokens: Sequence[int], num_wrong: int = 0) -> None:
        """A run computed ``tokens`` behind those of an owned slot, and then ``num_wrong`` of no use."""
        held = self._slots[slot].tokens
        held.extend(tokens)
        self.memory.touch(slot, len(held) + num_wrong)

    def cut(self, slot: int, num_kept: int) -> None:
        """Forget what is behind the first ``num_kept`` positions, and give its memory back."""
        del self._slots[slot].tokens[num_kept:]
        self.memory.release(slot, num_kept)

    def move(self, source: int, target: int) -> None:
        """Make the free slot ``target`` owned instead of ``source``, with all that it holds.

        ``source`` keeps its tokens and is given up before any other, for they are in ``target`` too.
        """
        moved = self._slots[source]
        self._copy(source, target, len(moved.tokens))
        self._free.remove(target)
        self._slots[target].tokens, self._slots[target].salt = moved.tokens[:], moved.salt
        self.release(source)
        moved.last_used = 0

    def release(self, slot: int) -> None:
        """Make an owned slot free. It keeps what others may use."""
        self.memory.promise(slot, 0)
        released = self._slots[slot]
        released.last_used = next(self._uses)
        if released.salt is None:
            released.tokens = []
        self._free.add(slot)

    def forget(self, slot: int) -> None:
        """What an owned slot holds is not known any more, nor how much of it was written."""
        self._slots[slot].tokens = []
        self.memory.touch(slot, self.memory.promised(slot))

    def forget_salt(self, salt: str) -> None:
        """Free slots keep nothing for requests of this salt."""
        for slot in self._free:
            if self._slots[slot].salt == salt:
                self._slots[slot].tokens = []

    def last_used(self, slot: int) -> int:
        """When a slot was last used, in uses; -1 where it holds nothing, so that nothing is older."""
        return self._slots[slot].last_used if self._slots[slot].tokens else -1

    def copied(self) -> None:
        """The run with ``copies`` is over."""
        self._copies.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError where a free slot keeps what nobody may use."""
        kept = [slot for slot in self._free if self._slots[slot].salt is None and self._slots[slot].tokens]
        assert not kept, f"this is a bug: free slots {kept} keep tokens of requests that share nothing"
        self.memory.check_integrity()
        unfunded = [
            slot for slot, held in enumerate(self._slots) if len(held.tokens) > self.memory.touched(slot)
        ]
        assert not unfunded, f"this is a bug: slots {unfunded} hold tokens where there is no memory"

    def _loss(self, slot: int, prompt: list[int], salt: str | None) -> tuple[int, int, int]:
        held = self._slots[slot]
        if not held.tokens:
            return 1, slot, 0
        if held.salt == salt and _begins(prompt, held.tokens):
            return 0, -len(held.tokens), slot
        return 2, held.last_used, slot

    def _longest(self, slot: int, prompt: list[int], salt: str | None) -> tuple[int, int]:
        """The slot that holds most of the prompt and how much; of equals ``slot`` itself, then the lowest."""
        donor, length = slot, 0
        if salt is None:
            return donor, length
        for each in (slot, *range(len(self._slots))):
            held = self._slots[each]
            # Whoever has more than `length` tokens in common has the next one too: most fail here.
            if held.salt == salt and len(held.tokens) > length and held.tokens[length] == prompt[length]:
                common = min(common_prefix(held.tokens, prompt), len(prompt) - 1)
                if common > length:
                    donor, length = each, common
        return donor, length

    def _copy(self, source: int, target: int, num_tokens: int) -> None:
        self._slots[source].last_used = next(self._uses)
        self._copies.append(SlotCopy(source, target, num_tokens))
        self.memory.touch(target, num_tokens)
        self.num_copies += 1


def _begins(prompt: list[int], tokens: list[int]) -> bool:
    """Whether a prompt begins with ``tokens``, at least one; most do not, and the last of them shows it."""
    size = len(tokens)
    return size <= len(prompt) and tokens[-1] == prompt[size - 1] and tokens == prompt[:size]
