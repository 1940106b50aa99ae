"""Attention as the export traces it: every layer becomes two GroupQueryAttention nodes over slot caches.

transformers lets a model's attention be replaced by a registered function. Ours emits the nodes and takes the
caches from the graph's inputs, so that no architecture needs code of its own.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "llm_grpc_slots"
"""The name under which the function is registered; ``model.set_attn_implementation(ATTENTION)``."""

Caches = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Key and value of the decode rows' slots, key and value of the chunk's slot."""


@dataclass
class StepTrace:
    """The graph inputs that attention reads while one step is traced, and the caches it hands back."""

    split: torch.Tensor
    decode_seqlens: torch.Tensor
    decode_total: torch.Tensor
    chunk_seqlens: torch.Tensor
    chunk_total: torch.Tensor
    past: list[Caches]
    present: dict[int, Caches] = field(default_factory=dict)


current_step: ContextVar[StepTrace] = ContextVar("current_step")


@dataclass(frozen=True)
class _Shape:
    num_heads: int
    num_kv_heads: int
    scale: float
    window: int
    softcap: float


class _TwoGroupQueryAttention(torch.autograd.Function):
    """Packed ``query [1, T, heads * d]``, ``key``, ``value [1, T, kv_heads * d]`` to ``[1, T, heads * d]``.

    ``forward`` gives shapes only: the export never computes it.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
    ) -> tuple[torch.Tensor, ...]:
        caches = rest[:4]
        return torch.zeros_like(query), *(cache.clone() for cache in caches)

    @staticmethod
    def symbolic(
        g: Any, query: Any, key: Any, value: Any,
        decode_key: Any, decode_value: Any, chunk_key: Any, chunk_value: Any,
        split: Any, decode_seqlens: Any, decode_total: Any, chunk_seqlens: Any, chunk_total: Any,
        shape: _Shape,
    ) -> tuple[Any, ...]:  # fmt: skip
        halves = [g.op("Split", x, split, axis_i=1, outputs=2) for x in (query, key, value)]
        # The decode rows are a batch of sequences of one token: [1, D, h] becomes [D, 1, h].
        decode = [g.op("Transpose", half[0], perm_i=[1, 0, 2]) for half in halves]
        chunk = [half[1] for half in halves]
        out_d, key_d, value_d = _gqa(
            g, shape, *decode, decode_key, decode_value, decode_seqlens, decode_total
        )
        out_c, key_c, value_c = _gqa(g, shape, *chunk, chunk_key, chunk_value, chunk_seqlens, chunk_total)
        out = g.op("Concat", g.op("Transpose", out_d, perm_i=[1, 0, 2]), out_c, axis_i=1)
        results = (out, key_d, value_d, key_c, value_c)
        for result, like in zip(
            results, (query, decode_key, decode_value, chunk_key, chunk_value), strict=True
        ):
            result.setType(like.type())
        return results


def _gqa(g: Any, shape: _Shape, *inputs: Any) -> tuple[Any, Any, Any]:
    attributes: dict[str, Any] = {
        "num_heads_i": shape.num_heads,
        "kv_num_heads_i": shape.num_kv_heads,
        "scale_f": shape.scale,
        "local_window_size_i": shape.window,
    }
    if shape.softcap:
        attributes["softcap_f"] = shape.softcap
    out, key, value = g.op("com.microsoft::GroupQueryAttention", *inputs, outputs=3, **attributes)
    return out, key, value


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of transformers: ``query [1, heads, T, d]`` to ``[1, T, heads, d]``."""
    step, layer = current_step.get(), int(module.layer_idx)
    heads, kv_heads, head_dim = int(query.shape[1]), int(key.shape[1]), int(query.shape[3])
    shape = _Shape(heads, kv_heads, scaling or head_dim**-0.5, sliding_window or -1, softcap or 0.0)

    def packed(x: torch.Tensor, num_heads: int) -> torch.Tensor:
        return x.transpose(1, 2).reshape(1, -1, num_heads * head_dim)

    out, *present = _TwoGroupQueryAttention.apply(
        packed(query, heads), packed(key, kv_heads), packed(value, kv_heads),
        *step.past[layer],
        step.split, step.decode_seqlens, step.decode_total, step.chunk_seqlens, step.chunk_total,
        shape,
    )  # fmt: skip
    step.present[layer] = tuple(present)
    return out.view(1, -1, heads, head_dim), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
