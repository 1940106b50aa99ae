"""Blocks of the cache: who refers to them, which ones are free, and which can be found again."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Blocks 0 to ``num_blocks - 1``, each with a count of references.

    A block without references is free. One that was published stays findable until it is taken for something
    else, which comes last: blank blocks go first, then findable ones, whose last reference went longest ago
    first. Every operation takes the same time however many blocks there are.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._kept: dict[int, None] = {}  # free and findable, in the order in which they are given up
        self._names: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._blank) + len(self._kept)

    def references(self, block: int) -> int:
        """How many hold the block."""
        return self._references[block]

    def take(self) -> int:
        """A free block, with one reference, that holds nothing of use.

        Raises:
            ValueError: none is free.
        """
        if self._blank:
            block = self._blank.pop()
        elif self._kept:
            block = next(iter(self._kept))
            del self._kept[block]
            del self._blocks[self._names.pop(block)]
        else:
            raise ValueError("this is a bug: a block was taken and none is free")
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more refers to a block that somebody holds, or that was found."""
        if not self._references[block]:
            del self._kept[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One fewer refers to the block."""
        self._references[block] -= 1
        if self._references[block]:
            return
        if block in self._names:
            self._kept[block] = None
        else:
            self._blank.append(block)

    def publish(self, block: int, name: bytes) -> None:
        """Make a held block findable, unless another one is under this name."""
        if name not in self._blocks:
            self._blocks[name] = block
            self._names[block] = name

    def name(self, block: int) -> bytes | None:
        """The name under which the block can be found."""
        return self._names.get(block)

    def forget(self, name: bytes) -> None:
        """Nothing can be found under this name any more."""
        block = self._blocks.pop(name, None)
        if block is not None:
            del self._names[block]
            if block in self._kept:
                del self._kept[block]
                self._blank.append(block)

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks of the names from the first on that can be found."""
        found: list[int] = []
        for name in names:
            if (block := self._blocks.get(name)) is None:
                break
            found.append(block)
        return found

    def check_integrity(self) -> None:
        """Raise AssertionError unless each block is free once or held, and names and blocks agree."""
        free = sorted([*self._blank, *self._kept])
        unheld = [block for block, count in enumerate(self._references) if not count]
        assert free == unheld, f"this is a bug: blocks {free} are free, and nobody holds {unheld}"
        assert min(self._references, default=0) >= 0, "this is a bug: a block was released too often"
        assert {name: block for block, name in self._names.items()} == self._blocks, (
            "this is a bug: blocks are not found under their names"
        )
        assert self._kept.keys() == {block for block in free if block in self._names}, (
            "this is a bug: free blocks that are findable are kept as blank ones, or the other way round"
        )
