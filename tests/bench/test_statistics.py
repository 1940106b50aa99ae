"""The figures against definitions simple enough to be read."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_grpc.bench.record import RequestRecord, RunRecord
from llm_grpc.bench.statistics import Slo, distribution, meets, summarize
from tests.bench.records import RUNS, SECONDS

LIMITS = st.builds(Slo, ttft_s=st.none() | SECONDS, itl_s=st.none() | SECONDS, e2e_s=st.none() | SECONDS)


def percentile(samples: list[float], percent: float) -> float:
    """The value at `percent` of the way from the smallest to the largest, between two samples linearly."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


@given(st.lists(SECONDS, min_size=1, max_size=50))
def test_distributions(samples: list[float]) -> None:
    found = distribution(samples)
    assert found
    assert found.samples == len(samples)
    assert found.mean == close(math.fsum(samples) / len(samples))
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert getattr(found, name) == close(percentile(samples, percent))
    assert min(samples) <= found.p50 <= found.p90 <= found.p99 <= max(samples)


@given(RUNS)
def test_counts_and_rates(run: RunRecord) -> None:
    found = summarize(run)
    whole = [r for r in run.requests if r.error is None]
    assert (found.requests, found.completed) == (len(run.requests), len(whole))
    assert found.completed + sum(found.errors.values()) == found.requests
    for error, count in found.errors.items():
        assert sum(r.error == error for r in run.requests) == count
    assert found.output_tokens == sum(len(r.token_times_s) for r in whole)
    assert found.output_tokens_per_s == close(found.output_tokens / run.wall_s)
    assert found.requests_per_s == close(len(whole) / run.wall_s)
    assert found.prompt_tokens == sum(r.prompt_tokens for r in whole)
    assert found.goodput is None
    assert (found.cpu_s, found.peak_bytes) == (run.cpu_s, run.peak_bytes)


@given(RUNS)
def test_latencies_count_from_the_moment_a_request_was_due(run: RunRecord) -> None:
    found = summarize(run)
    first, last, gaps = [], [], []
    for r in run.requests:
        if r.error is None:
            times = r.token_times_s
            first.append(times[0] - r.due_s)
            last.append(times[-1] - r.due_s)
            gaps += [times[i + 1] - times[i] for i in range(len(times) - 1)]
    for samples, summary in ((first, found.ttft_s), (last, found.e2e_s), (gaps, found.itl_s)):
        assert (summary is None) == (not samples)
        if summary:
            assert summary.samples == len(samples)
            assert summary.mean == close(math.fsum(samples) / len(samples))
            assert summary.p99 == close(percentile(samples, 99))


@given(RUNS, LIMITS)
def test_goodput(run: RunRecord, slo: Slo) -> None:
    goodput = summarize(run, slo).goodput
    assert goodput
    good = 0
    for r in run.requests:
        times = r.token_times_s
        if r.error is not None:
            continue
        slow_start = slo.ttft_s is not None and times[0] - r.due_s > slo.ttft_s
        slow_end = slo.e2e_s is not None and times[-1] - r.due_s > slo.e2e_s
        mean_gap = math.fsum(b - a for a, b in pairwise(times)) / max(1, len(times) - 1)
        # Where rounding decides, either answer is right.
        if slo.itl_s is not None and mean_gap == pytest.approx(slo.itl_s, rel=1e-9):
            return
        good += not (slow_start or slow_end or (slo.itl_s is not None and mean_gap > slo.itl_s))
    assert goodput.requests == good
    assert goodput.share == close(good / len(run.requests) if run.requests else 0.0)
    assert goodput.requests_per_s == close(good / run.wall_s)


def request(*times: float, due: float = 0.0, start: float = 0.0, error: str | None = None) -> RequestRecord:
    return RequestRecord(index=0, due_s=due, start_s=start, token_times_s=times, prompt_tokens=1, error=error)


def test_a_late_client_hides_nothing() -> None:
    """Sent 9 s late and answered in 1 s: whoever asked has waited 10 s."""
    found = summarize(RunRecord(requests=(request(10.0, due=0.0, start=9.0),), wall_s=10.0))
    assert found.ttft_s
    assert found.start_delay_s
    assert (found.ttft_s.p50, found.start_delay_s.p50) == (10.0, 9.0)


def test_a_limit_that_is_reached_is_kept() -> None:
    exact = request(0.5, 0.75, 1.0)
    assert meets(exact, Slo(ttft_s=0.5, itl_s=0.25, e2e_s=1.0))
    assert not meets(exact, Slo(ttft_s=0.4))
    assert not meets(exact, Slo(itl_s=0.2))
    assert not meets(exact, Slo(e2e_s=0.9))
    assert meets(request(3.0), Slo(itl_s=0.0)), "one token has no gap"


def test_tokens_of_one_message_are_no_time_apart() -> None:
    found = summarize(RunRecord(requests=(request(1.0, 1.0, 1.0, 4.0),), wall_s=4.0))
    assert found.itl_s
    assert (found.itl_s.samples, found.itl_s.p50, found.itl_s.mean) == (3, 0.0, 1.0)


def test_nothing_measured() -> None:
    found = summarize(RunRecord(requests=(), wall_s=0.0), Slo(ttft_s=1.0))
    assert (found.ttft_s, found.itl_s, found.requests_per_s) == (None, None, 0.0)
    assert found.goodput
    assert found.goodput.share == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_times_s": [2.0, 1.0]},
        {"token_times_s": []},
        {"due_s": 3.0},
        {"due_s": -1.0},
        {"token_times_s": [math.inf]},
        {"prompt_tokens": -1},
    ],
)
def test_a_record_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    right = {
        "index": 0,
        "due_s": 0.0,
        "start_s": 0.5,
        "token_times_s": [1.0],
        "prompt_tokens": 1,
        "error": None,
    }
    RequestRecord.model_validate(right)
    with pytest.raises(ValidationError):
        RequestRecord.model_validate(right | wrong)


def test_the_arithmetic_knows_no_transport() -> None:
    code = "import sys, llm_grpc.bench.statistics; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"grpc", "google", "onnxruntime", "uvloop", "cyclopts"}
