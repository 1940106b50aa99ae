"""Names of full blocks: equal tokens after equal tokens, for the same salt, have the same name."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

_SIZE = 32
"""Bytes of a name. Two beginnings with one name would be one tenant's text in another's answer."""


def root(salt: str) -> bytes:
    """The name before the first block."""
    return blake2b(salt.encode(), digest_size=_SIZE).digest()


def following(before: bytes, tokens: Sequence[int]) -> bytes:
    """The name of the block that holds ``tokens``, behind the one that is named ``before``."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=_SIZE).digest()


def digests(salt: str, tokens: Sequence[int], block_size: int) -> Iterator[bytes]:
    """The names of the blocks that ``tokens`` fill."""
    name = root(salt)
    for end in range(block_size, len(tokens) + 1, block_size):
        name = following(name, tokens[end - block_size : end])
        yield name
