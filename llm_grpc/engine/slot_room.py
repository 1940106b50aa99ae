"""Memory for who needs it: what nobody can use is given back first, then what was used longest ago."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from llm_grpc.engine.slot_table import SlotTable


def take_slot(table: SlotTable, prompt: list[int], salt: str | None, num_tokens: int) -> int | None:
    """Take the free slot that suits a prompt best for a request of at most ``num_tokens``.

    Returns None where no slot is free, or no memory however much is given up: the request has to wait.
    """
    if not table.free or num_tokens > table.memory.num_unpromised:
        return None
    slot = table.best(prompt, salt)
    # What the prompt begins with stays if it can; if it cannot, the request goes where that is.
    donors = () if table.memory.fits(slot, num_tokens) else (table.donor(slot, prompt, salt),)
    for each, needed in ((slot, donors), *((donor, ()) for donor in donors)):
        if each in table.free and _promise(table, each, num_tokens, needed):
            table.take(each)
            return each
    return None


def move(table: SlotTable, source: int, target: int) -> bool:
    """Move a request to a free slot, unless there is no memory for both slots: then nothing happens.

    Both hold what is moved until the next step.
    """
    memory = table.memory
    num_tokens = memory.promised(source)
    memory.promise(source, 0)
    if not _promise(table, target, num_tokens, needed=(source,)):
        memory.promise(source, num_tokens)
        return False
    table.move(source, target)
    return True


def _promise(table: SlotTable, slot: int, num_tokens: int, needed: Collection[int]) -> bool:
    """Promise memory to a slot if it can be had without the tokens of the ``needed`` slots."""
    table.memory.promise(slot, num_tokens)
    if _make_room(table, needed):
        return True
    table.memory.promise(slot, 0)
    return False


def _make_room(table: SlotTable, needed: Collection[int]) -> bool:
    """Give back as much as the promises take. False, and nothing is, where that cannot be had."""
    missing, cuts = table.memory.num_missing, dict[int, int]()
    for slot, num_kept in _wasted(table):
        if missing > 0:
            cuts[slot] = num_kept
            missing -= table.memory.touched(slot) - num_kept
    for slot in _given_up(table, needed):
        if missing > 0:
            num_tokens = len(table.tokens(slot))
            cuts[slot] = max(0, num_tokens - missing)  # others begin with what it begins with
            missing -= num_tokens - cuts[slot]
    if missing > 0:
        return False
    for slot, num_kept in cuts.items():
        table.cut(slot, num_kept)
    return True


def _wasted(table: SlotTable) -> Iterator[tuple[int, int]]:
    """Slots with memory behind all that anybody may use, and how many of their positions are in use."""
    memory = table.memory
    for slot in table.settled:
        num_used = memory.promised(slot) or len(table.tokens(slot))
        if memory.touched(slot) > num_used:
            yield slot, num_used


def _given_up(table: SlotTable, needed: Collection[int]) -> Iterator[int]:
    """Slots that only keep tokens for later, those used longest ago first."""
    kept = (slot for slot in table.settled if not table.memory.promised(slot) and slot not in needed)
    yield from sorted(kept, key=table.last_used)
