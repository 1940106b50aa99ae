"""The key-value cache as a pool of slots."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llm_grpc.errors import StartupError
from llm_grpc.graph_names import KINDS
from llm_grpc.manifest import KvCache

KvTensor = NDArray[np.float32] | NDArray[np.int8]


class SlotPool:
    """``num_slots`` slots and a scratch slot: ``[num_slots + 1, heads, capacity, head_dim]`` for each layer
    and kind.

    The memory is zero pages until it is touched, so it costs what is used. Kernels write into it through the
    pointers of its views.

    Raises:
        StartupError: the system does not reserve that much.
    """

    def __init__(self, shape: KvCache, num_slots: int, capacity: int) -> None:
        self.scratch = num_slots
        size = (num_slots + 1, shape.num_heads, capacity, shape.head_dim)
        layers = range(shape.num_layers)
        try:
            self._tensors = {(layer, kind): np.zeros(size, shape.dtype) for layer in layers for kind in KINDS}
        except (MemoryError, ValueError) as error:  # numpy's word for more than the address space
            raise StartupError(
                f"cannot reserve the cache of {num_slots} slots of {capacity} tokens: {error}; "
                "lower max_running or max_context_tokens"
            ) from error

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` positions of a slot to another one, in every layer."""
        for tensor in self._tensors.values():
            tensor[target, :, :num_tokens] = tensor[source, :, :num_tokens]

    def views(self, first: int, count: int) -> Iterator[tuple[int, str, KvTensor]]:
        """Layer, kind and the view of ``count`` slots from ``first`` on, for every tensor."""
        for (layer, kind), tensor in self._tensors.items():
            yield layer, kind, tensor[first : first + count]
