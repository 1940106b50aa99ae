"""The types that a model can be exported in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class ElementType:
    """One type of weights and of what is computed from them."""

    name: Literal["float32", "float16", "bfloat16"]
    """As the manifest has it for the cache."""
    weights: Literal["fp32", "fp16", "bf16"]
    """As the manifest has it for the weights."""


ELEMENT_TYPES = {
    torch.float32: ElementType("float32", "fp32"),
    torch.float16: ElementType("float16", "fp16"),
    torch.bfloat16: ElementType("bfloat16", "bf16"),
}


def dtype_of(weights: str) -> torch.dtype:
    """The type that the manifest calls ``weights``; KeyError if there is none."""
    found: dict[str, torch.dtype] = {element.weights: dtype for dtype, element in ELEMENT_TYPES.items()}
    return found[weights]


HALF = frozenset({torch.float16, torch.bfloat16})
"""Those of 16 bits."""
