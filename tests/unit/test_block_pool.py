"""Blocks, one rule at a time: who has them, who finds them, which goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.engine.block_digest import digests
from llm_grpc.engine.block_pool import BlockPool

tokens = st.lists(st.integers(0, 2), max_size=12)


def kept(pool: BlockPool, *names: bytes) -> list[int]:
    """Publish a block under each name and release them all, in this order."""
    blocks = [pool.take() for _ in names]
    for block, name in zip(blocks, names, strict=True):
        pool.publish(block, name)
    for block in blocks:
        pool.release(block)
    return blocks


def test_blank_blocks_go_first_and_then_what_was_released_longest_ago() -> None:
    pool = BlockPool(4)
    a, b, c = kept(pool, b"a", b"b", b"c")
    assert pool.num_free == 4
    assert pool.take() == 3, "the only block that holds nothing"
    pool.share(a)
    pool.release(a)  # used again: now the last to go
    assert [pool.take() for _ in range(3)] == [b, c, a]
    assert pool.find([b"a"]) == pool.find([b"b"]) == []
    pool.check_integrity()
    with pytest.raises(ValueError, match="bug: a block was taken and none is free"):
        pool.take()


def test_a_block_is_free_when_the_last_reference_goes() -> None:
    pool = BlockPool(1)
    block = pool.take()
    pool.share(block)
    pool.release(block)
    assert (pool.num_free, pool.references(block)) == (0, 1)
    pool.release(block)
    assert (pool.num_free, pool.references(block)) == (1, 0)


def test_what_is_found_begins_with_the_first_name() -> None:
    pool = BlockPool(3)
    a, b, _ = kept(pool, b"a", b"b", b"c")
    assert pool.find([b"a", b"b", b"x", b"c"]) == [a, b]
    assert pool.find([b"x", b"a"]) == []


def test_of_two_equal_blocks_the_first_is_found() -> None:
    pool = BlockPool(2)
    first, second = pool.take(), pool.take()
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.release(second)
    assert pool.find([b"a"]) == [first]
    assert pool.take() == second, "it is as good as blank"
    pool.check_integrity()


def test_a_released_block_that_is_released_again_is_seen() -> None:
    pool = BlockPool(1)
    pool.release(pool.take())
    pool.release(0)
    with pytest.raises(AssertionError, match="this is a bug"):
        pool.check_integrity()


@given(tokens, tokens, st.sampled_from(["", "a"]), st.sampled_from(["", "a"]), st.integers(1, 4))
def test_equal_names_are_equal_beginnings_of_one_salt(
    first: list[int], second: list[int], salt: str, other: str, size: int
) -> None:
    names = list(digests(salt, first, size)), list(digests(other, second, size))
    assert [len(found) for found in names] == [len(first) // size, len(second) // size]
    for index, (a, b) in enumerate(zip(*names, strict=False)):
        end = (index + 1) * size
        assert (a == b) == (salt == other and first[:end] == second[:end])
    assert len({*names[0]}) == len(names[0])
