"""The settings of `llm-grpc bench`. Each field is one flag; a value out of its range is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from llm_grpc.bench.statistics import Slo
from llm_grpc.client.channel import DEFAULT_ADDRESS

_LIMIT = re.compile(r"(ttft|itl|e2e)=(\d+(?:\.\d+)?)(ms|s)")
_RANGE = re.compile(r"(\d+)(?::(\d+))?")

PLOT_FORMATS = (".png", ".html")


def parse_slo(text: str) -> Slo:
    """Read ``ttft=500ms,itl=100ms,e2e=10s``, any of the three.

    Raises:
        ValueError: it is not of that form, or names a limit twice.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        match = _LIMIT.fullmatch(part.strip())
        if not match or f"{match[1]}_s" in limits:
            raise ValueError("should be limits such as ttft=500ms,itl=100ms,e2e=10s, each once")
        limits[f"{match[1]}_s"] = float(match[2]) * (0.001 if match[3] == "ms" else 1.0)
    return Slo(**limits)


def parse_range(text: str) -> tuple[int, int]:
    """Read ``128`` or ``32:512`` as the least and the most tokens.

    Raises:
        ValueError: it is neither, below 1, or its most is below its least.
    """
    match = _RANGE.fullmatch(text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise ValueError("should be a count of tokens from 1 or MIN:MAX")
    return least, most


def _checked_slo(text: str) -> str:
    if text:
        parse_slo(text)
    return text


def _checked_range(text: str) -> str:
    if text:
        parse_range(text)
    return text


def _checked_plot(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in PLOT_FORMATS:
        raise ValueError(f"should end in {' or '.join(PLOT_FORMATS)}")
    return _checked_file(path)


def _checked_file(path: Path | None) -> Path | None:
    """Found out before the run, not after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError("should be in a directory that exists")
    return path


Flag = Annotated[bool, Parameter(negative="")]
TokenRange = Annotated[str, AfterValidator(_checked_range)]
Sweep = Parameter(consume_multiple=True, negative="")


@Parameter(name="*")
@dataclass(frozen=True)
class Target:
    """Which server is measured."""

    address: str = DEFAULT_ADDRESS
    """Server, HOST:PORT. LLM_GRPC_ADDRESS counts too, with 0.0.0.0 or [::] read as loopback."""

    start: Flag = False
    """Start a server of its own on a loopback port instead, with the flags of `llm-grpc serve` that follow
    `--`, and stop it at the end."""

    start_limit_s: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 300.0
    """Seconds that a server gets to start."""

    metrics_address: str = ""
    """Prometheus endpoint of a running server, HOST:PORT, to read its CPU time and memory from."""

    model: str = ""
    """Name of the model; empty is the server's default."""

    timeout_s: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 600.0
    """Deadline of each request, counted from its sending."""

    no_cache: Flag = False
    """Let the server compute every prompt whole. Without it requests of one run share beginnings, never
    those of two runs."""


@Parameter(name="*")
@dataclass(frozen=True)
class WorkloadSettings:
    """What is asked for."""

    trace: Path | None = None
    """Trace file: a prompt, a number of output tokens and an arrival time for each request."""

    wrap_token_ids: Flag = False
    """Map ids of a trace that the model's vocabulary does not have by modulo."""

    shape: Literal["sharegpt-like", "uniform", "fixed", "shared-prefix"] = "sharegpt-like"
    """Lengths of generated requests, where there is no trace."""

    prompt_tokens: TokenRange = ""
    """Tokens of a prompt, or what follows a shared prefix: N for fixed, N or MIN:MAX for uniform and
    shared-prefix; empty is 128, 32:512 and 16:64."""

    output_tokens: TokenRange = ""
    """Tokens to generate, written as prompt_tokens; empty is 64, 16:256 and 16:64."""

    prefixes: Annotated[int, Field(ge=1, le=1_000_000)] = 4
    """Shared prefixes that the requests of shared-prefix take turns with."""

    prefix_tokens: Annotated[int, Field(ge=1)] = 256
    """Tokens of each."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The same seed draws the same lengths, token ids and arrival times."""


@Parameter(name="*")
@dataclass(frozen=True)
class LoadSettings:
    """How fast, and how much of it."""

    rate: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Sweep] = ()
    """Requests per second, arriving at random (Poisson) whether or not earlier ones are answered. Several
    are measured one after the other."""

    concurrency: Annotated[tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Sweep] = ()
    """Requests in flight: the next is sent when one ends. Several are measured one after the other. Without
    a rate too, a trace comes at its own times, and a shape one by one."""

    requests: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Most requests of a run; 0 is 64, or as many as the duration allows, or all of a trace."""

    duration_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 0.0
    """Seconds during which requests are sent; those in flight then still end. 0 is no limit."""

    warmup: Annotated[int, Field(ge=0, le=10_000)] = 4
    """Requests that are sent together before the first run, and not counted."""


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """What becomes of the figures."""

    slo: Annotated[str, AfterValidator(_checked_slo)] = ""
    """Limits of a good request, such as ttft=500ms,itl=100ms,e2e=10s; itl is of the request's mean."""

    json: Annotated[Path | None, AfterValidator(_checked_file)] = None
    """File for every time that was measured, and the figures."""

    plot: Annotated[Path | None, AfterValidator(_checked_plot)] = None
    """File for a chart of latency and throughput against load, .png or .html; needs llm-grpc[bench]."""


@dataclass(frozen=True)
class Settings:
    """All of them."""

    target: Target
    workload: WorkloadSettings
    load: LoadSettings
    output: Output

    @property
    def slo(self) -> Slo | None:
        """The limits of a good request, if there are any."""
        return parse_slo(self.output.slo) if self.output.slo else None
