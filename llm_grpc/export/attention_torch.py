"""Attention that is computed, behind the same hook that the export traces, and what its caches would hold."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llm_grpc.export.attention import AttentionShape


class MaximaStep:
    """A ``Step`` over one whole sequence from its beginning: attends, and keeps the largest magnitudes."""

    def __init__(self) -> None:
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    def attend(
        self, layer: int, shape: AttentionShape,
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Packed ``query [1, T, heads * d]``, ``key`` and ``value [1, T, kv_heads * d]`` to query's shape."""
        _enlarge(self._keys, layer, key, shape)
        _enlarge(self._values, layer, value, shape)
        return attention(shape, query, key, value, sinks)

    def maxima(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of keys and of values, each ``[layers, kv_heads, d]``."""
        return _stack(self._keys), _stack(self._values)


def attention(
    shape: AttentionShape,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of one sequence from its beginning.

    ``query`` is ``[1, T, heads * d]``, ``key`` and ``value`` are ``[1, T, kv_heads * d]``, and ``sinks`` is
    ``[heads]``; what ``shape`` says of a window, a scale and a softcap is done. The scores are held for one
    key-value head at a time.

    Returns:
        ``[1, T, heads * d]``.
    """
    tokens, group = int(query.shape[1]), shape.num_heads // shape.num_kv_heads
    heads = query.view(tokens, shape.num_kv_heads, group, shape.head_dim).permute(1, 2, 0, 3)
    keys, values = (x.view(tokens, shape.num_kv_heads, shape.head_dim).transpose(0, 1) for x in (key, value))
    biases = [None] * shape.num_kv_heads if sinks is None else sinks.view(shape.num_kv_heads, group, 1, 1)
    hidden = _hidden(tokens, shape.window)
    parts = zip(heads, keys, values, biases, strict=True)
    out = torch.stack([_head(shape, hidden, *part) for part in parts])
    return out.permute(2, 0, 1, 3).reshape(query.shape)


def _head(
    shape: AttentionShape,
    hidden: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """``query [group, T, d]`` over ``key`` and ``value [T, d]``."""
    scores = query @ key.T * shape.scale
    if shape.softcap:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    scores = scores.masked_fill(hidden, -torch.inf)
    if sink is not None:
        scores = torch.cat((scores, sink.expand(-1, scores.shape[1], -1)), dim=-1)
    return scores.softmax(-1)[..., : key.shape[0]] @ value


def _hidden(tokens: int, window: int) -> torch.Tensor:
    """``[T, T]``, true where the row's token does not see the column's."""
    place = torch.arange(tokens)
    distance = place[:, None] - place
    hidden = distance < 0
    return hidden | (distance >= window) if window > 0 else hidden


def _enlarge(
    maxima: dict[int, torch.Tensor], layer: int, packed: torch.Tensor, shape: AttentionShape
) -> None:
    found = packed.abs().amax((0, 1)).view(shape.num_kv_heads, shape.head_dim)
    maxima[layer] = torch.maximum(maxima.get(layer, found), found)


def _stack(maxima: dict[int, torch.Tensor]) -> NDArray[np.float32]:
    stacked: NDArray[np.float32] = torch.stack([maxima[layer] for layer in sorted(maxima)]).float().numpy()
    return stacked
