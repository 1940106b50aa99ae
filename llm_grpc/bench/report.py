"""What `--json` writes: what was measured on what, the figures, and every time behind them."""

from __future__ import annotations

import os
import platform
from typing import Literal

from pydantic import BaseModel, ConfigDict

from llm_grpc import __version__
from llm_grpc.bench.load import Load
from llm_grpc.bench.record import RunRecord
from llm_grpc.bench.statistics import Slo, Summary


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelFacts(_Part):
    """What was served, as GetModel says."""

    name: str
    digest: str
    architecture: str
    weights: str


class ClientFacts(_Part):
    """What measured."""

    version: str = __version__
    system: str = platform.platform()
    cpus: int | None = os.cpu_count()


class RunReport(_Part):
    """One point of a sweep."""

    load: Load
    summary: Summary
    record: RunRecord


class Report(_Part):
    """The file. ``format`` changes when a reader of an earlier one would misread it."""

    format: Literal[1] = 1
    model: ModelFacts
    client: ClientFacts
    workload: str
    """What was sent, in words: the trace's path, or the shape with its settings."""
    serve_flags: tuple[str, ...] | None
    """Of the server that was started; None for a running one."""
    slo: Slo | None
    interrupted: bool = False
    runs: list[RunReport] = []
