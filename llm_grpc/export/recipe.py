"""What an export makes of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_grpc.adapter_room import MAX_ADAPTER_RANK
from llm_grpc.errors import ExportError
from llm_grpc.export.rounding.blocks import BLOCK_SIZES, INT8, int4

Weights = Literal["fp32", "fp16", "bf16", "int8", "int4"]
ComputesIn = Literal["fp32", "fp16", "bf16"]
Lowering = Literal["slots", "paged"]


@dataclass(frozen=True)
class Recipe:
    """The format of the weights, and the text that calibrates it.

    ``dtype`` is what is computed in, and the type of the cache; ``auto`` is that of the weights, fp32 where
    they are quantised. 16 bits are for NVIDIA GPUs. ``kv_cache`` is the type of the cache where it is not
    ``dtype``.

    ``mean_bits`` bounds the bits per weight of an int4 model with its scales: with a text, the layers of the
    largest error get 8 bits while the mean stays below it. ``block_size`` weights of such a model share a
    scale: more are faster for a single row, smaller, and less exact.

    ``lowering`` is how attention finds the cache: ``slots`` for CPUs, ``paged`` for NVIDIA GPUs.
    ``stages`` graphs are written, each of some of the layers. They have room for adapters whose ranks are
    ``max_adapter_rank`` together.

    Raises:
        ExportError: the settings do not go together.
    """

    weights: Weights = "fp32"
    calibrate: Path | None = None
    mean_bits: float = 7.0
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    kv_cache: Literal["auto", "int8"] = "auto"
    block_size: int = 32
    lowering: Lowering = "slots"
    stages: int = 1
    max_adapter_rank: int = 0

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ExportError(f"--stages is {self.stages}, and must be at least 1")
        if not 0 <= self.max_adapter_rank <= MAX_ADAPTER_RANK:
            raise ExportError(
                f"--max-adapter-rank is {self.max_adapter_rank}, and must be 0 to {MAX_ADAPTER_RANK}"
            )
        if self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise ExportError(f"--block-size is {self.block_size}, and must be one of {sizes}")
        if not self.least_bits <= self.mean_bits <= INT8.mean_bits:
            raise ExportError(
                f"--mean-bits is {self.mean_bits:g}, and the limits are {self.least_bits:g} and "
                f"{INT8.mean_bits:g}"
            )
        self._check_together()

    def _check_together(self) -> None:
        """Raise ExportError where one setting rules out another."""
        if self.kv_cache == "int8" and not self.calibrate:
            raise ExportError("--kv-cache int8 takes its scales from a text: pass --calibrate FILE")
        if self.kv_cache == "int8" and self.computes_in != "fp32":
            raise ExportError(f"--kv-cache int8 is for CPUs, and {self.computes_in} is not")
        if self.calibrate and not self.is_quantised and self.kv_cache == "auto":
            raise ExportError(f"--calibrate has nothing to choose where --weights is {self.weights}")
        possible = {"int8": ["fp32"], "int4": ["fp32", "fp16", "bf16"]}.get(self.weights, [self.weights])
        if self.computes_in not in possible:
            raise ExportError(
                f"--dtype is {self.dtype}, and weights in {self.weights} can be computed with in "
                f"{' or '.join(possible)}"
            )
        if self.lowering == "paged" and self.computes_in == "fp32":
            raise ExportError(
                f"--lowering paged is for NVIDIA GPUs and computes in fp16 or bf16; --weights {self.weights} "
                f"with --dtype {self.dtype} computes in fp32"
            )

    @property
    def least_bits(self) -> float:
        """Bits per weight where every layer has 4, with scales and zero points."""
        return int4(self.block_size).mean_bits

    @property
    def formats(self) -> tuple[str, str]:
        """The format that the layers of a quantised model have, and the one that the worst of them get."""
        return ("int8" if self.weights == "int8" else f"blocks4x{self.block_size}"), "blocks8"

    @property
    def is_quantised(self) -> bool:
        """Whether layers differ in format."""
        return self.weights in {"int8", "int4"}

    @property
    def computes_in(self) -> ComputesIn:
        """``dtype``, or what stands for ``auto``."""
        if self.dtype != "auto":
            return self.dtype
        return "fp32" if self.weights in {"int8", "int4"} else self.weights  # type: ignore[return-value]
