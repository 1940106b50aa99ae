"""The key-value cache as a pool of slots."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from llm_grpc.errors import StartupError
from llm_grpc.graph_names import KINDS
from llm_grpc.manifest import KvCache

KvTensor = NDArray[np.float32] | NDArray[np.int8]


class SlotPool:
    """``num_slots`` slots and a scratch slot: ``[num_slots + 1, heads, capacity, head_dim]`` for each layer
    and kind.

    The memory is zero pages until it is touched, and again once it is released, so it costs what is used.
    Kernels write into it through the pointers of its views.

    Raises:
        StartupError: the system does not reserve that much.
    """

    def __init__(self, shape: KvCache, num_slots: int, capacity: int) -> None:
        self.scratch = num_slots
        size = (num_slots + 1, shape.num_heads, capacity, shape.head_dim)
        layers = range(shape.num_layers)
        self._maps: dict[tuple[int, str], mmap.mmap] = {}
        self._tensors: dict[tuple[int, str], KvTensor] = {}
        try:
            for place in ((layer, kind) for layer in layers for kind in KINDS):
                self._maps[place] = _zero_pages(math.prod(size) * np.dtype(shape.dtype).itemsize)
                self._tensors[place] = np.frombuffer(self._maps[place], shape.dtype).reshape(size)
        except (OSError, OverflowError) as error:  # more than the system gives; more than an address space
            raise StartupError(
                f"cannot reserve the cache of {num_slots} slots of {capacity} tokens: {error}; "
                "lower max_running or max_context_tokens"
            ) from error

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` positions of a slot to another one, in every layer."""
        for tensor in self._tensors.values():
            tensor[target, :, :num_tokens] = tensor[source, :, :num_tokens]

    def release(self, slot: int, num_kept: int) -> None:
        """Give the memory of a slot back to the system but for its first ``num_kept`` positions, in every
        layer. What was there may be anything from then on; most of it is zero.

        Only whole pages can go: up to two of each head stay, for the neighbours' data is in them.
        """
        for place, tensor in self._tensors.items():
            _, num_heads, capacity, _ = tensor.shape
            head, position = tensor.strides[1:3]
            # Heads lie behind each other: a whole slot is one range.
            heads = range(num_heads) if num_kept else range(1)
            length = (capacity - num_kept) * position if num_kept else num_heads * head
            for index in heads:
                start = slot * tensor.strides[0] + index * head + num_kept * position
                _release_pages(self._maps[place], start, start + length)

    def views(self, first: int, count: int) -> Iterator[tuple[int, str, KvTensor]]:
        """Layer, kind and the view of ``count`` slots from ``first`` on, for every tensor."""
        for (layer, kind), tensor in self._tensors.items():
            yield layer, kind, tensor[first : first + count]


def _zero_pages(num_bytes: int) -> mmap.mmap:
    """Memory of this process alone that costs nothing until it is touched, and then by the page.

    Raises:
        OSError: the system does not give that much.
        OverflowError: it is more than an address space.
    """
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # One token would cost 2 MiB for each head of a long slot, and could not be given back alone.
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages


def _release_pages(pages: mmap.mmap, start: int, end: int) -> None:
    """Give the whole pages among the bytes from ``start`` to ``end`` back; others keep what they hold."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        pages.madvise(mmap.MADV_DONTNEED, first, length)
