"""What was measured, as it is kept in JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.gpu.works import Figures


@dataclass(frozen=True)
class SoakResult:
    """``growth_bytes`` by meter, from the second quarter of the time to the last."""

    finished: int
    cancelled: int
    tokens: int
    errors: dict[str, int]
    growth_bytes: dict[str, int]


@dataclass
class ModelResult:
    """One model on one server. ``decode_limit`` is in tokens a second; 0 where it is not known."""

    model: str
    server: str
    figures: list[Figures] = field(default_factory=list)
    decode_limit: float = 0.0
    soak: SoakResult | None = None
    error: str = ""
