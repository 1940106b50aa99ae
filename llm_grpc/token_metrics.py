"""The two metrics that every generated token moves."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class TokenMetrics:
    """Counts one model's generated tokens and the gaps between them.

    prometheus-client's own counter and histogram take a lock and check their labels for each token, which was
    a tenth of what a streamed message cost. These are plain numbers: one thread writes, scrapes read.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.gaps = [0] * (len(_BOUNDS_S) + 1)
        self.gaps_s = 0.0

    def first(self) -> None:
        """Count a request's first token."""
        self.num_tokens += 1

    def next(self, gap_s: float, count: int) -> None:
        """Count ``count`` tokens of a request that came together, ``gap_s`` after the one before them."""
        self.num_tokens += count
        self.gaps[bisect_left(_BOUNDS_S, gap_s)] += 1
        self.gaps[0] += count - 1
        self.gaps_s += gap_s


class TokenCollector(Collector):
    """The numbers of all models, for a registry to collect; ``label`` is the name of the models' label."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._models: dict[str, TokenMetrics] = {}

    def of_model(self, model_name: str) -> TokenMetrics:
        """The numbers of one model."""
        return self._models.setdefault(model_name, TokenMetrics())

    def collect(self) -> Iterator[Metric]:
        """The families, as a scrape shows them."""
        tokens = CounterMetricFamily("llm_grpc_generation_tokens", "Generated tokens.", labels=(self._label,))
        gaps = HistogramMetricFamily(
            "llm_grpc_inter_token_latency_seconds",
            "Between two tokens of a request.",
            labels=(self._label,),
        )
        bounds = (*map(str, _BOUNDS_S), "+Inf")
        for model_name, counted in self._models.items():
            tokens.add_metric((model_name,), counted.num_tokens)
            buckets = list(zip(bounds, map(float, accumulate(counted.gaps)), strict=True))
            gaps.add_metric((model_name,), buckets, counted.gaps_s)
        yield tokens
        yield gaps
