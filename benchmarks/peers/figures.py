"""From records to the figures of the table; latencies are computed as ``llm-grpc bench`` computes them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.peers.record import RequestRecord, RunRecord
from llm_grpc.bench.statistics import distribution, gaps_s, ttft_s

Figures = dict[str, float]
"""Each work has its own; what cannot be told is left out."""


@dataclass(frozen=True)
class Spread:
    """One figure over the rounds."""

    median: float
    least: float
    most: float


def figures(record: RunRecord) -> Figures:
    """The figures of one run."""
    common = {"cpu_s": record.cpu_s, "peak_bytes": float(record.peak_bytes), "wall_s": record.wall_s}
    work = {"trace": _trace, "single": _single, "decode": _decode}[record.work]
    return common | work(record.requests)


def spread(runs: Sequence[Figures]) -> dict[str, Spread]:
    """Median, least and most of each figure over the rounds that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: _spread([run[name] for run in runs if name in run]) for name in names}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _trace(requests: Sequence[RequestRecord]) -> Figures:
    tokens = sum(len(request.token_times_s) for request in requests)
    begin = min(request.due_s for request in requests)
    end = max(request.token_times_s[-1] for request in requests)
    found = {"tokens_per_s": tokens / (end - begin)}
    found |= _percentiles("ttft", [ttft_s(request) for request in requests])
    if all(_is_streamed(request) for request in requests):
        found |= _percentiles("itl", [gap for request in requests for gap in gaps_s(request)])
    return found


def _single(requests: Sequence[RequestRecord]) -> Figures:
    (request,) = requests
    if not _is_streamed(request):
        return {}
    first, last = request.token_times_s[0], request.token_times_s[-1]
    return {
        "prefill_tokens_per_s": request.prompt_tokens / ttft_s(request),
        "decode_tokens_per_s": (len(request.token_times_s) - 1) / (last - first),
    }


def _decode(requests: Sequence[RequestRecord]) -> Figures:
    """Only while all of a group decode: from the last one's first token to the first one's last."""
    found: Figures = {}
    for running, members in groupby(requests, key=lambda request: request.group):
        group = list(members)
        begin = max(request.token_times_s[0] for request in group)
        end = min(request.token_times_s[-1] for request in group)
        if end > begin:
            tokens = sum(begin < time <= end for request in group for time in request.token_times_s)
            found[f"tokens_per_s_{running}"] = tokens / (end - begin)
    return found


def _is_streamed(request: RequestRecord) -> bool:
    """Whether its tokens came one after the other; of one token nobody can say otherwise."""
    return len(request.token_times_s) == 1 or request.token_times_s[-1] > request.token_times_s[0]


def _percentiles(name: str, samples: Sequence[float]) -> Figures:
    found = distribution(samples)
    return {f"{name}_p50_s": found.p50, f"{name}_p99_s": found.p99} if found else {}
