"""The blocks of one running request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_grpc.engine.block_digest import following
from llm_grpc.engine.block_pool import BlockPool
from llm_grpc.engine.step_plan import BlockGrant


@dataclass(slots=True)
class BlockTable:
    """``blocks`` hold the tokens in turn: ``num_full`` of them are full, and ``tail`` is in the next one.

    ``name`` is the last full block's, None where the request shares nothing. There come to be no more than
    ``most_blocks``. The runner knows the first ``num_granted`` places. ``names`` are those of the full blocks
    of what was known at admission.
    """

    slot: int
    block_size: int
    most_blocks: int
    name: bytes | None
    names: Sequence[bytes]
    blocks: list[int]
    tail: list[int]
    num_full: int = 0
    num_granted: int = 0

    @property
    def num_computed(self) -> int:
        """Tokens that the blocks hold."""
        return self.num_full * self.block_size + len(self.tail)

    @property
    def grant(self) -> BlockGrant | None:
        """What the runner does not know; None where that is nothing."""
        first = self.num_granted
        return BlockGrant(self.slot, first, tuple(self.blocks[first:])) if first < len(self.blocks) else None

    def begin_with(self, found: Sequence[int], name: bytes | None, pool: BlockPool) -> None:
        """Take the found blocks in place of own ones, and of what was copied to those."""
        for block in found[self.num_full :]:
            pool.share(block)
        for block in self.blocks[self.num_full : len(found)]:
            pool.release(block)
        self.blocks[self.num_full : len(found)] = found[self.num_full :]
        self._replaced(self.num_full)
        self.num_full, self.name, self.tail = len(found), name, []

    def extend(self, num_tokens: int, pool: BlockPool) -> bool:
        """Have blocks for the first ``num_tokens``. False, and nothing changes, where they are missing."""
        missing = -(-num_tokens // self.block_size) - len(self.blocks)
        if missing <= 0:
            return True
        if missing > pool.num_free:
            return False
        self.blocks += [pool.take() for _ in range(missing)]
        return True

    def append(self, tokens: Sequence[int], pool: BlockPool) -> None:
        """A run computed ``tokens`` behind those that are here. Full blocks become findable."""
        self.tail += tokens
        size = self.block_size
        while len(self.tail) >= size:
            if self.name is not None:
                self.name = following(self.name, self.tail[:size])
                pool.publish(self.blocks[self.num_full], self.name)
            del self.tail[:size]
            self.num_full += 1

    def cut(self, pool: BlockPool) -> None:
        """Give back blocks behind all that was computed."""
        num_used = self.num_full + bool(self.tail)
        for block in reversed(self.blocks[num_used:]):
            pool.release(block)
        del self.blocks[num_used:]
        self._replaced(num_used)

    def release(self, pool: BlockPool) -> None:
        """Give everything back, the end first: others begin with what it begins with."""
        for block in reversed(self.blocks):
            pool.release(block)

    def _replaced(self, place: int) -> None:
        """The runner does not know what is in this place now."""
        self.num_granted = min(self.num_granted, place)
