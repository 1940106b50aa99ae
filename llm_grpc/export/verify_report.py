"""What a verification found, and what it must find for each weight format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Thresholds:
    """The limits of one weight format; None is no limit.

    ``tie`` says when two tokens are equally likely: their logits in torch differ by no more than this part
    of the row's largest. A greedy choice between two such tokens is counted as a tie, not as a difference.
    """

    relative_error: float | None
    mean_kl_nats: float
    greedy_agreement: float
    tie: float


THRESHOLDS = {
    "fp32": Thresholds(relative_error=1e-4, mean_kl_nats=1e-6, greedy_agreement=1.0, tie=1e-4),
    "fp16": Thresholds(relative_error=None, mean_kl_nats=2e-4, greedy_agreement=0.95, tie=1e-3),
    "bf16": Thresholds(relative_error=None, mean_kl_nats=1e-2, greedy_agreement=0.90, tie=1e-2),
    "int8": Thresholds(relative_error=None, mean_kl_nats=5e-2, greedy_agreement=0.90, tie=1e-2),
    "int4": Thresholds(relative_error=None, mean_kl_nats=2e-1, greedy_agreement=0.80, tie=1e-2),
}
"""By the manifest's ``weights``. fp32 differs from torch by the order of additions alone; the others are
bounds on what a format may cost, not what it usually does. torch in half precision is off by 3e-5 nats in
fp16 and by 2e-3 in bf16 on the shipped model's checkpoint, and 3 of 128 tokens differ."""


def limits_of(weights: str, cache: str) -> Thresholds:
    """The limits of weights with a cache of a type; KeyError if there are none."""
    return THRESHOLDS["int8" if (weights, cache) == ("fp32", "int8") else weights]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Logits(_Part):
    """Over ``rows`` rows: prompts in chunks, then decoded tokens. Relative is to the row's largest logit.
    ``mean_kl_nats`` and ``max_kl_nats`` are of the exported model's next token from torch's.
    """

    rows: int
    max_abs_error: float
    relative_error: float
    mean_kl_nats: float
    max_kl_nats: float


class Greedy(_Part):
    """Tokens that the exported model generated, and how many torch would have chosen after the same ones."""

    prompts: int
    tokens: int
    equal: int
    ties: int

    @property
    def agreement(self) -> float:
        """The part that is equal or a tie."""
        return (self.equal + self.ties) / self.tokens


class Perplexity(_Part):
    """Of a text, cut into windows of ``window_tokens`` that do not see each other."""

    text_sha256: str
    tokens: int
    window_tokens: int
    exported: float
    reference: float


class Verification(_Part):
    """The content of ``verification.json``. ``files`` are the digests of the files it speaks of.

    ``computed_in`` is the type that the exported model computed in here: float32 for weights of 16 bits means
    that the weights and the graph were verified, and the kernels' own rounding was not. ``attention`` is
    how that was computed: by the kernel that serves, or of lowering ``paged`` by operators that define it.
    """

    format: int = 1
    reference: str
    weights: str
    computed_in: str = "float32"
    attention: Literal["kernel", "definition"] = "kernel"
    passed: bool
    allowed_inexact: bool
    faults: tuple[str, ...]
    thresholds: Thresholds
    logits: Logits
    greedy: Greedy
    perplexity: Perplexity | None
    files: dict[str, str]
    versions: dict[str, str]

    def summary(self) -> str:
        """The numbers as one line."""
        found, greedy, text = self.logits, self.greedy, self.perplexity
        parts = [
            f"relative logit error {found.relative_error:.1e}",
            f"KL divergence {found.mean_kl_nats:.1e} nats (largest {found.max_kl_nats:.1e})",
            f"{greedy.equal} of {greedy.tokens} greedy tokens equal, {greedy.ties} ties",
        ]
        if self.weights in {"fp16", "bf16"} and self.computed_in == "float32":
            parts.append("computed in fp32 for want of a GPU")
        if self.attention == "definition":
            parts.append("attention by its definition, not by its kernel")
        if text:
            parts.append(f"perplexity {text.exported:.3f} (torch {text.reference:.3f})")
        return "; ".join(parts)


def faults(logits: Logits, greedy: Greedy, limits: Thresholds) -> tuple[str, ...]:
    """What is outside the limits, each in a few words. Numbers that are not finite are."""
    found: list[str] = []
    for name, value, limit in (
        ("relative logit error", logits.relative_error, limits.relative_error),
        ("mean KL divergence", logits.mean_kl_nats, limits.mean_kl_nats),
    ):
        if limit is not None and not value <= limit:
            found.append(f"{name} {value:.2e}, limit {limit:.0e}")
    if not greedy.agreement >= limits.greedy_agreement:
        found.append(f"greedy agreement {greedy.agreement:.3f}, least {limits.greedy_agreement:g}")
    return tuple(found)
