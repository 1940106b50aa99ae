"""One export on its way through the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from llm_grpc.adapter_room import AdapterRoom
from llm_grpc.export.calibrate import Calibration
from llm_grpc.export.element_type import dtype_of
from llm_grpc.export.passes.merge import merge_projections
from llm_grpc.export.passes.weights import fold
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.source import Source

GRAPH = "model.onnx"

GraphPass = Callable[[ir.Model], object]

GRAPH_PASSES: tuple[GraphPass, ...] = (fold, merge_projections)
"""What is done to the graph once it has its weights, in order."""


@dataclass
class Job:
    """One export on its way: ``directory`` is where the files are written."""

    source: Source
    name: str
    directory: Path
    recipe: Recipe = field(default_factory=Recipe)
    passes: tuple[GraphPass, ...] = GRAPH_PASSES
    model: Any = None
    """The torch model, its weights mapped from the source's files, until they are written."""

    rewritten: Any = None
    """The graph, from the trace to the writing."""

    calibration: Calibration | None = None
    """What the recipe's text showed."""

    adapters: AdapterRoom | None = None
    """The room for them in the graph."""

    config: Any = None
    tokenizer: Any = None
    kv_cache: Any = None
    eos_token_ids: tuple[int, ...] = ()
    recordable: bool = False
    stage_layers: tuple[int, ...] = ()
    """How many layers each stage has."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed, and of the cache."""
        return dtype_of(self.recipe.computes_in)

    @property
    def is_paged(self) -> bool:
        """Whether attention reads blocks."""
        return self.recipe.lowering == "paged"

    @property
    def graph(self) -> Path:
        """The file of the whole graph."""
        return self.directory / GRAPH

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the files that are written: one, or one for each stage."""
        count = self.recipe.stages
        return (GRAPH,) if count == 1 else tuple(f"model-{i}-of-{count}.onnx" for i in range(1, count + 1))
