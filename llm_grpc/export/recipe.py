"""What an export makes of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_grpc.errors import ExportError
from llm_grpc.export.quantize.blocks import INT4, INT8

Weights = Literal["fp32", "int8", "int4"]

_LEAST_BITS, _MOST_BITS = INT4.mean_bits, INT8.mean_bits


@dataclass(frozen=True)
class Recipe:
    """The format of the weights, and the text that calibrates it.

    ``mean_bits`` bounds the bits per weight of an int4 model with its scales: with a text, the layers of the
    largest error get 8 bits while the mean stays below it.

    Raises:
        ExportError: the settings do not go together.
    """

    weights: Weights = "fp32"
    calibrate: Path | None = None
    mean_bits: float = 6.5

    def __post_init__(self) -> None:
        if not _LEAST_BITS <= self.mean_bits <= _MOST_BITS:
            raise ExportError(
                f"--mean-bits is {self.mean_bits:g}, and the limits are {_LEAST_BITS} and {_MOST_BITS}"
            )
        if self.calibrate and self.weights == "fp32":
            raise ExportError("--calibrate has nothing to choose where --weights is fp32")
