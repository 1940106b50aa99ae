"""What a served model is measured at, through gRPC, and what the machine allows at best."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from llm_grpc.bench.measure import measure
from llm_grpc.bench.settings import LoadSettings, Output, Settings, Target, WorkloadSettings
from llm_grpc.bench.statistics import Distribution, Summary
from llm_grpc.bench.usage import process_meter
from llm_grpc.cli.child_server import ChildServer

OUTPUT = Output()


@dataclass(frozen=True)
class Work:
    """A workload at a load, and the figures of it that are told."""

    name: str
    title: str
    prompt: str
    output: str
    concurrency: tuple[int, ...] = ()
    rate: tuple[float, ...] = ()
    requests: int = 1
    figures: tuple[str, ...] = ("output_tokens_per_s",)


@dataclass(frozen=True)
class Figures:
    """Of one work at one load; times in milliseconds."""

    work: str
    load: str
    found: dict[str, float] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)


_LATENCIES = ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")

WORKS = (
    Work(
        "batch",
        "256 requests at once, 100 to 1,024 tokens in and out",
        "100:1024",
        "100:1024",
        concurrency=(256,),
        requests=256,
        figures=("output_tokens_per_s", "total_tokens_per_s"),
    ),
    Work(
        "long",
        "256 requests at once, 1,000 tokens in and 1,000 out",
        "1000",
        "1000",
        concurrency=(256,),
        requests=256,
        figures=("output_tokens_per_s", "total_tokens_per_s"),
    ),
    Work("single", "One request, 128 tokens in, 512 out", "128", "512", concurrency=(1,)),
    Work(
        "prefill",
        "16 requests at once, 1,024 tokens in, one out",
        "1024",
        "1",
        concurrency=(16,),
        requests=64,
        figures=("prompt_tokens_per_s",),
    ),
    Work(
        "poisson",
        "Requests at random times, 100 to 512 tokens in and out",
        "100:512",
        "100:512",
        rate=(2.0, 8.0, 16.0),
        requests=96,
        figures=("output_tokens_per_s", *_LATENCIES),
    ),
)

TOY_WORKS = (
    Work("batch", "", "4:12", "4:12", concurrency=(8,), requests=8),
    Work("single", "", "8", "16", concurrency=(1,)),
    Work("poisson", "", "4:12", "4:12", rate=(50.0,), requests=8, figures=_LATENCIES),
)
"""To see that all of it runs; their figures mean nothing."""


def run(work: Work, server: ChildServer, seed: int = 0) -> list[Figures]:
    """Drive one work against a running server; figures for each of its loads.

    Raises:
        BenchError: the server does not answer.
    """
    settings = Settings(
        Target(address=server.address, no_cache=True),
        WorkloadSettings(shape="uniform", prompt_tokens=work.prompt, output_tokens=work.output, seed=seed),
        LoadSettings(rate=work.rate, concurrency=work.concurrency, requests=work.requests, warmup=2),
        OUTPUT,
    )
    report = measure(settings, server.address, process_meter(server.pid), None)
    return [
        Figures(work.name, str(point.load), figures_of(point.summary), point.summary.errors)
        for point in report.runs
    ]


def figures_of(summary: Summary) -> dict[str, float]:
    """What a summary says, flat; without what it does not know."""
    rates = {
        "output_tokens_per_s": summary.output_tokens_per_s,
        "prompt_tokens_per_s": summary.prompt_tokens / summary.wall_s,
        "total_tokens_per_s": (summary.prompt_tokens + summary.output_tokens) / summary.wall_s,
        "wall_s": summary.wall_s,
    }
    for name, found in (("ttft", summary.ttft_s), ("itl", summary.itl_s)):
        rates |= _milliseconds(name, found)
    return rates


def _milliseconds(name: str, found: Distribution | None) -> dict[str, float]:
    return {} if found is None else {f"{name}_p50_ms": found.p50 * 1e3, f"{name}_p99_ms": found.p99 * 1e3}


def decode_limit(directory: Path, bytes_per_s: float) -> float:
    """Tokens a second of one request, were nothing done but reading the weights that a step reads."""
    tensors = json.loads((directory / "weights.json").read_text(encoding="utf-8"))["tensors"]
    num_bytes: int = sum(tensor["length"] for tensor in tensors if not tensor["is_looked_up"])
    return bytes_per_s / num_bytes
