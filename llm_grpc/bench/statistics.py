"""From a record to figures. Knows no transport: the records of any server go through the same arithmetic.

Latencies and throughput are those of requests that were answered whole. Errors are counted beside them, and
against the goodput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict

from llm_grpc.bench.record import RequestRecord, RunRecord


class Slo(BaseModel):
    """Limits that a request must keep to count as good, in seconds; None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_s: float | None = None
    itl_s: float | None = None
    """Of a request's mean gap between two tokens."""
    e2e_s: float | None = None


class Distribution(BaseModel):
    """What a set of samples looks like. Percentiles interpolate linearly between the two nearest samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    mean: float
    p50: float
    p90: float
    p99: float


class Goodput(BaseModel):
    """What met every limit of the SLO."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int
    share: float
    """Of all requests that ended, those with errors included; 0 to 1."""
    requests_per_s: float
    output_tokens_per_s: float


class Summary(BaseModel):
    """The figures of one run. A distribution is None where there is no sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int
    completed: int
    errors: dict[str, int]
    wall_s: float
    requests_per_s: float
    output_tokens: int
    output_tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int | None
    """None where the server tells of none of its answers."""
    ttft_s: Distribution | None
    """Due to first token."""
    itl_s: Distribution | None
    """Between two tokens of a request; every gap of every request is one sample."""
    e2e_s: Distribution | None
    """Due to last token."""
    start_delay_s: Distribution | None
    """Due to sent: what the client itself was late. ttft_s and e2e_s hold it."""
    goodput: Goodput | None
    cpu_s: float | None
    client_cpu_s: float | None
    peak_bytes: int | None


def summarize(record: RunRecord, slo: Slo | None = None) -> Summary:
    """Compute the figures of one run; without `slo` there is no goodput."""
    answered = [request for request in record.requests if request.error is None]
    output_tokens = sum(len(request.token_times_s) for request in answered)
    cached = [request.cached_tokens for request in answered if request.cached_tokens is not None]
    return Summary(
        requests=len(record.requests),
        completed=len(answered),
        errors=dict(Counter(request.error for request in record.requests if request.error is not None)),
        wall_s=record.wall_s,
        requests_per_s=_rate(len(answered), record),
        output_tokens=output_tokens,
        output_tokens_per_s=_rate(output_tokens, record),
        prompt_tokens=sum(request.prompt_tokens for request in answered),
        cached_tokens=sum(cached) if cached else None,
        ttft_s=distribution([ttft_s(request) for request in answered]),
        itl_s=distribution([gap for request in answered for gap in gaps_s(request)]),
        e2e_s=distribution([e2e_s(request) for request in answered]),
        start_delay_s=distribution([request.start_s - request.due_s for request in record.requests]),
        goodput=_goodput(record, answered, slo) if slo else None,
        cpu_s=record.cpu_s,
        client_cpu_s=record.client_cpu_s,
        peak_bytes=record.peak_bytes,
    )


def ttft_s(request: RequestRecord) -> float:
    """Time to the first token since the request was due, not since it was sent.

    A client that falls behind sends late; counted from the sending, the wait would vanish from the figures
    just when the server is slow (coordinated omission).
    """
    return request.token_times_s[0] - request.due_s


def e2e_s(request: RequestRecord) -> float:
    """Time to the last token since the request was due."""
    return request.token_times_s[-1] - request.due_s


def gaps_s(request: RequestRecord) -> list[float]:
    """Seconds between consecutive tokens as they reached the client; 0 for tokens of one message."""
    return [later - earlier for earlier, later in pairwise(request.token_times_s)]


def meets(request: RequestRecord, slo: Slo) -> bool:
    """Whether a request that was answered keeps every limit. An answer of one token has no gap to be slow."""
    gaps = gaps_s(request)
    found = (ttft_s(request), sum(gaps) / len(gaps) if gaps else 0.0, e2e_s(request))
    limits = (slo.ttft_s, slo.itl_s, slo.e2e_s)
    return all(limit is None or value <= limit for value, limit in zip(found, limits, strict=True))


def distribution(samples: Sequence[float]) -> Distribution | None:
    """Mean and percentiles; None where there is no sample."""
    if not samples:
        return None
    p50, p90, p99 = np.percentile(samples, (50, 90, 99))
    mean = float(np.mean(samples))
    return Distribution(samples=len(samples), mean=mean, p50=float(p50), p90=float(p90), p99=float(p99))


def _goodput(record: RunRecord, answered: Iterable[RequestRecord], slo: Slo) -> Goodput:
    good = [request for request in answered if meets(request, slo)]
    return Goodput(
        requests=len(good),
        share=len(good) / len(record.requests) if record.requests else 0.0,
        requests_per_s=_rate(len(good), record),
        output_tokens_per_s=_rate(sum(len(request.token_times_s) for request in good), record),
    )


def _rate(count: int, record: RunRecord) -> float:
    return count / record.wall_s if record.wall_s else 0.0
