"""The models that are measured and compared, as configurations: their weights are random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONTEXT_TOKENS = 2304
"""Room for 1,024 tokens in and out, and some: tables of the rotary embedding grow with it."""

END = 2


@dataclass(frozen=True)
class Shape:
    """An architecture of transformers and its sizes."""

    name: str
    architecture: str
    config: Mapping[str, Any]


def _shape(
    name: str,
    architecture: str,
    hidden: int,
    layers: int,
    heads: tuple[int, int, int],
    *rest: int,
    **more: Any,
) -> Shape:
    """``heads`` are those of queries, of keys, and their width; ``rest`` the widths of MLP and vocabulary."""
    queries, keys, head_dim = heads
    intermediate, vocabulary = rest
    config = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": queries,
        "num_key_value_heads": keys,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT_TOKENS,
        "eos_token_id": END,
        "bos_token_id": None,
        "pad_token_id": END,
        "tie_word_embeddings": False,
    }
    return Shape(name, architecture, config | more)


QWEN = _shape(
    "qwen2.5-0.5b", "qwen2", 896, 24, (14, 2, 64), 4864, 151936, tie_word_embeddings=True, rope_theta=1e6
)
LLAMA = _shape("llama-3.1-8b", "llama", 4096, 32, (32, 8, 128), 14336, 128256, rope_theta=5e5)
MEASURED = (QWEN, LLAMA)

AGREEING = tuple(
    _shape(f"head{head_dim}-group{group}", "llama", 512, 4, (8, 8 // group, head_dim), 1024, 1024)
    for head_dim in (64, 128)
    for group in (1, 2, 4, 8)
)
"""Both widths of a head that kernels are made for, and 1 to 8 heads of queries for each of keys."""

TOY = _shape("toy", "llama", 64, 2, (4, 2, 16), 96, 300)
"""For a machine without a GPU."""

SHAPES = {shape.name: shape for shape in (*MEASURED, *AGREEING, TOY)}
