"""What others published for the same work, which figures are held against. None of it was measured here."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """Tokens a second, and whose: another server, format or GPU is named with it."""

    tokens_per_s: float
    source: str


TARGETS = {
    ("batch", "qwen2.5-0.5b"): Target(17_700, "vLLM, A800"),
    ("long", "llama-3.1-8b"): Target(17_744, "TensorRT-LLM, FP8, H200"),
}
"""By work and model; a single request is held against what the GPU's own memory allows."""
