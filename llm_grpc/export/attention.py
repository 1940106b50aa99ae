"""Attention as the export traces it: every layer becomes two GroupQueryAttention nodes over slot caches.

transformers lets a model's attention be replaced by a registered function. Ours emits the nodes and takes the
caches from the graph's inputs, so that no architecture needs code of its own.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from llm_grpc.errors import ExportError

ATTENTION = "llm_grpc_slots"
"""The name under which the function is registered; ``model.set_attn_implementation(ATTENTION)``."""

Caches = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Key and value of the decode rows' slots, key and value of the chunk's slot."""


@dataclass(frozen=True)
class AttentionShape:
    """What one layer's attention is, apart from its values."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int
    """Tokens that a token sees, itself included; -1 for all."""
    softcap: float
    has_sinks: bool


class Step(Protocol):
    """What stands behind the attention of all layers while a model runs under ``ATTENTION``."""

    def attend(
        self, layer: int, shape: AttentionShape,
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Packed ``query [1, T, heads * d]``, ``key`` and ``value [1, T, kv_heads * d]`` to its shape."""
        ...


current_step: ContextVar[Step] = ContextVar("current_step")


@dataclass
class StepTrace:
    """The graph inputs that attention reads while one step is traced, and the caches it hands back."""

    num_decode: torch.Tensor
    decode_end: torch.Tensor
    decode_seqlens: torch.Tensor
    decode_total: torch.Tensor
    chunk_seqlens: torch.Tensor
    chunk_total: torch.Tensor
    past: list[Caches]
    present: dict[int, Caches] = field(default_factory=dict)

    def attend(
        self, layer: int, shape: AttentionShape,
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Emit the layer's two nodes and keep its caches; all of them are of the caches' type."""
        before, dtype = query.dtype, self.past[layer][0].dtype
        query, key, value = (x if x.dtype == dtype else x.to(dtype) for x in (query, key, value))
        out, *present = _TwoGroupQueryAttention.apply(
            query, key, value, *self.past[layer],
            self.num_decode, self.decode_end,
            self.decode_seqlens, self.decode_total, self.chunk_seqlens, self.chunk_total,
            shape, *(() if sinks is None else (sinks if sinks.dtype == dtype else sinks.to(dtype),)),
        )  # fmt: skip
        self.present[layer] = tuple(present)
        return out if out.dtype == before else out.to(before)


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
        num_decode: Any, decode_end: Any,
        decode_seqlens: Any, decode_total: Any, chunk_seqlens: Any, chunk_total: Any,
        shape: AttentionShape, *sinks: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        first, last = (g.op("Constant", value_t=torch.tensor([place])) for place in (0, _LAST))
        tokens = g.op("Constant", value_t=torch.tensor([1]))  # the axis
        packed = (query, key, value)
        # The decode rows are a batch of sequences of one token: [1, E, h] becomes [E, 1, h].
        rows = [g.op("Slice", x, first, decode_end, tokens) for x in packed]
        decode = [g.op("Transpose", x, perm_i=[1, 0, 2]) for x in rows]
        chunk = [g.op("Slice", x, num_decode, last, tokens) for x in packed]
        out_d, key_d, value_d = _gqa(
            g, shape, *decode, decode_key, decode_value, decode_seqlens, decode_total, *sinks
        )
        out_c, key_c, value_c = _gqa(
            g, shape, *chunk, chunk_key, chunk_value, chunk_seqlens, chunk_total, *sinks
        )
        wanted = g.op("Slice", g.op("Transpose", out_d, perm_i=[1, 0, 2]), first, num_decode, tokens)
        out = g.op("Concat", wanted, out_c, axis_i=1)
        results = (out, key_d, value_d, key_c, value_c)
        for result, like in zip(
            results, (query, decode_key, decode_value, chunk_key, chunk_value), strict=True
        ):
            result.setType(like.type())
        return results


_LAST = 2**63 - 1
"""The end of a slice that reaches to the last token."""

_INPUTS_BEFORE_SINKS = 11
"""cos_cache, sin_cache, position_ids and attention_bias stand between the lengths and head_sink."""


def _gqa(g: Any, shape: AttentionShape, *inputs: Any) -> tuple[Any, Any, Any]:
    attributes: dict[str, Any] = {
        "num_heads_i": shape.num_heads,
        "kv_num_heads_i": shape.num_kv_heads,
        "scale_f": shape.scale,
        "local_window_size_i": shape.window,
    }
    if shape.softcap:
        attributes["softcap_f"] = shape.softcap
    if shape.has_sinks:
        *inputs, sinks = inputs  # type: ignore[assignment]
        absent = g.op("prim::Constant")
        absent.setType(torch._C.OptionalType.ofTensor())
        inputs = (*inputs, *[absent] * (_INPUTS_BEFORE_SINKS - len(inputs)), sinks)
    out, key, value = g.op("com.microsoft::GroupQueryAttention", *inputs, outputs=3, **attributes)
    return out, key, value


_HARMLESS = frozenset({"position_ids", "cache_position", "position_embeddings"})
"""Tensors that models hand to every attention function and that the rotation has used already."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of transformers: ``query [1, heads, T, d]`` to ``[1, T, heads, d]``.

    The mask is passed over: the nodes are causal, and see a window where the layer has one.

    Raises:
        ExportError: the layer asks for something that the nodes do not do.
    """
    _refuse(module, others)
    out = attend(
        int(module.layer_idx), query, key, value, scaling, sliding_window or -1, softcap or 0.0, s_aux
    )
    return out, None


def attend(
    layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    scale: float | None = None, window: int = -1, softcap: float = 0.0, sinks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention of one layer in the current step.

    Args:
        layer: the layer's place, from 0.
        query: ``[1, heads, T, d]``.
        key: ``[1, kv_heads, T, d]``.
        value: ``[1, kv_heads, T, e]``.
        scale: factor of the scores; None means the square root of 1 / d.
        window: tokens that a token sees, itself included; -1 for all.
        softcap: bound of the scores; 0 for none.
        sinks: ``[heads]``, a score for each head that takes attention away from all tokens.

    Returns:
        ``[1, T, heads, e]``.
    """
    key_dim, value_dim = int(query.shape[3]), int(value.shape[3])
    # The node takes one head size for keys and values, a multiple of 8. Zeros change no score and no sum.
    head_dim = -(-max(key_dim, value_dim) // 8) * 8
    heads, kv_heads = int(query.shape[1]), int(key.shape[1])
    shape = AttentionShape(
        heads,
        kv_heads,
        head_dim,
        key_dim**-0.5 if scale is None else scale,
        window,
        softcap,
        sinks is not None,
    )

    def packed(x: torch.Tensor, num_heads: int) -> torch.Tensor:
        missing = head_dim - int(x.shape[3])
        if missing:
            x = torch.nn.functional.pad(x, (0, missing))
        return x.transpose(1, 2).reshape(1, -1, num_heads * head_dim)

    out = current_step.get().attend(
        layer, shape, packed(query, heads), packed(key, kv_heads), packed(value, kv_heads), sinks
    )
    out = out.view(1, -1, heads, head_dim)
    return out if value_dim == head_dim else out[..., :value_dim]


def _refuse(module: torch.nn.Module, others: dict[str, Any]) -> None:
    where = f"{type(module).__name__} of layer {getattr(module, 'layer_idx', '?')}"
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise ExportError(f"{where} is not causal")
    unknown = [k for k, v in others.items() if isinstance(v, torch.Tensor) and k not in _HARMLESS]
    if unknown:
        raise ExportError(
            f"{where} hands {unknown[0]} to its attention function, which the node does not take"
        )


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
