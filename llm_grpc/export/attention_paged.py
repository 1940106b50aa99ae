"""Attention as the export traces it for lowering ``paged``: one PagedAttention node a layer, over blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from llm_grpc.export.attention import AttentionShape

Caches = tuple[torch.Tensor, torch.Tensor]
"""Key and value, ``[blocks, block_size, kv_heads, head_dim]``."""

_FLASH_BLOCKS = ((64, 256), (128, 128))
"""Heads up to the first size take blocks of the second: flash attention reads tiles of so many tokens, none
of which may lie in two blocks."""

_LEAST_BLOCK = 64


def block_size_of(head_dim: int) -> int:
    """Tokens of a block with which the node's fastest kernel runs."""
    return next((size for most, size in _FLASH_BLOCKS if head_dim <= most), _LEAST_BLOCK)


@dataclass
class PagedTrace:
    """The graph inputs that attention reads while one step is traced, and the caches it hands back."""

    sequence_ends: torch.Tensor
    past_lengths: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    attention_bounds: torch.Tensor
    past: list[Caches]
    present: dict[int, Caches] = field(default_factory=dict)

    def attend(
        self, layer: int, shape: AttentionShape,
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Emit the layer's node and keep its caches; all of them are of the caches' type."""
        before, dtype = query.dtype, self.past[layer][0].dtype
        query, key, value = (x if x.dtype == dtype else x.to(dtype) for x in (query, key, value))
        out, *present = _PagedAttention.apply(
            query, key, value, *self.past[layer],
            self.sequence_ends, self.past_lengths, self.block_table, self.slot_mapping,
            self.attention_bounds, shape,
            *(() if sinks is None else (sinks if sinks.dtype == dtype else sinks.to(dtype),)),
        )  # fmt: skip
        self.present[layer] = (present[0], present[1])
        return out if out.dtype == before else out.to(before)


class _PagedAttention(torch.autograd.Function):
    """Packed ``query [1, T, heads * d]``, ``key``, ``value [1, T, kv_heads * d]`` to ``[1, T, heads * d]``.

    ``forward`` gives shapes only: the export never computes it.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
    ) -> tuple[torch.Tensor, ...]:
        return torch.zeros_like(query), rest[0].clone(), rest[1].clone()

    @staticmethod
    def symbolic(
        g: Any, query: Any, key: Any, value: Any, key_cache: Any, value_cache: Any,
        sequence_ends: Any, past_lengths: Any, block_table: Any, slot_mapping: Any, attention_bounds: Any,
        shape: AttentionShape, *sinks: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        width, kv_width = (count * shape.head_dim for count in (shape.num_heads, shape.num_kv_heads))
        tokens = [
            _reshape(g, x, -1, size) for x, size in ((query, width), (key, kv_width), (value, kv_width))
        ]
        none = _absent(g)
        inputs = (
            *tokens, key_cache, value_cache, sequence_ends, past_lengths, block_table,
            none, none,  # cos_cache, sin_cache
            slot_mapping, sinks[0] if sinks else none,
            none, none, none, none,  # norms of queries and keys, scales of an int8 cache
            attention_bounds,
        )  # fmt: skip
        out, *present = g.op("com.microsoft::PagedAttention", *inputs, outputs=3, **_attributes(shape))
        results = (_reshape(g, out, 1, -1, width), *present)
        for result, like in zip(results, (query, key_cache, value_cache), strict=True):
            result.setType(like.type())
        return results


def _attributes(shape: AttentionShape) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_heads_i": shape.num_heads,
        "kv_num_heads_i": shape.num_kv_heads,
        "scale_f": shape.scale,
        "local_window_size_i": shape.window,
    }
    return {**found, "softcap_f": shape.softcap} if shape.softcap else found


def _reshape(g: Any, value: Any, *sizes: int) -> Any:
    return g.op("Reshape", value, g.op("Constant", value_t=torch.tensor(sizes)))


def _absent(g: Any) -> Any:
    absent = g.op("prim::Constant")
    absent.setType(torch._C.OptionalType.ofTensor())
    return absent
