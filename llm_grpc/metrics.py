"""The metrics, by the names that dashboards and pickers expect. One registry a server, no globals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from llm_grpc.sampling_params import FinishReason
from llm_grpc.token_metrics import TokenCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


MODEL = "model_name"
"""The label of what belongs to one model. Its values are the configured names, so that there are few."""


class ReadCounter(Collector):
    """A counter for each model that is kept elsewhere and read at each scrape."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._reads: dict[str, Callable[[], int]] = {}

    def set_function(self, model_name: str, read: Callable[[], int]) -> None:
        """Ask ``read`` for the count so far of one model."""
        self._reads[model_name] = read

    def collect(self) -> Iterator[Metric]:
        """The family, as a scrape shows it."""
        family = CounterMetricFamily(self._name, self._text, labels=(MODEL,))
        for model_name, read in self._reads.items():
            family.add_metric((model_name,), read())
        yield family


class Metrics:
    """Everything that one server counts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.registry = registry = CollectorRegistry()
        self.clock = clock
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"llm_grpc_{name}", text, (MODEL,), registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = (MODEL,)) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"llm_grpc_{name}", text, (MODEL,), buckets=_SECONDS, registry=registry)

        self.requests_running = gauge("requests_running", "Requests that hold a slot.")
        self.requests_waiting = gauge("requests_waiting", "Admitted requests that wait for a slot.")
        self.kv_utilization = gauge("kv_utilization", "Share of the key-value cache in use, 0 to 1.")
        self.prompt_tokens = counter("llm_grpc_prompt_tokens", "Prompt tokens of admitted requests.")
        self.prefix_cache_queries = counter(
            "llm_grpc_prefix_cache_queries", "Prompt tokens that were looked for in the cache."
        )
        self.prefix_cache_hits = counter(
            "llm_grpc_prefix_cache_hits", "Prompt tokens that were found in the cache and not computed."
        )
        self.tokens = TokenCollector(MODEL)
        registry.register(self.tokens)
        self.preemptions = ReadCounter(
            "llm_grpc_preemptions", "Running requests whose memory others needed; they compute it again."
        )
        registry.register(self.preemptions)
        self.request_success = counter(
            "llm_grpc_request_success", "Requests that ended well.", (MODEL, "finished_reason")
        )
        self.time_to_first_token = histogram("time_to_first_token_seconds", "Admission to first token.")
        self.e2e_request_latency = histogram("e2e_request_latency_seconds", "Admission to last token.")
        self.grpc_started = counter(
            "grpc_server_started", "RPCs started.", ("grpc_type", "grpc_service", "grpc_method")
        )
        self.grpc_handled = counter(
            "grpc_server_handled",
            "RPCs completed.",
            ("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
        )
        self.grpc_handling = Histogram(
            "grpc_server_handling_seconds",
            "Duration of RPCs.",
            ("grpc_type", "grpc_service", "grpc_method"),
            buckets=_SECONDS,
            registry=registry,
        )


class ModelMetrics:
    """The series of one model, which are there from now on."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self.registry, self.clock = metrics.registry, metrics.clock
        self._name, self._request_success = model_name, metrics.request_success
        self._preemptions = metrics.preemptions
        self.requests_running = metrics.requests_running.labels(model_name)
        self.requests_waiting = metrics.requests_waiting.labels(model_name)
        self.kv_utilization = metrics.kv_utilization.labels(model_name)
        self.prompt_tokens = metrics.prompt_tokens.labels(model_name)
        self.prefix_cache_queries = metrics.prefix_cache_queries.labels(model_name)
        self.prefix_cache_hits = metrics.prefix_cache_hits.labels(model_name)
        self.tokens = metrics.tokens.of_model(model_name)
        self.time_to_first_token = metrics.time_to_first_token.labels(model_name)
        self.e2e_request_latency = metrics.e2e_request_latency.labels(model_name)

    def succeeded(self, reason: FinishReason) -> None:
        """Count a request that ended well."""
        self._request_success.labels(self._name, reason.value).inc()

    def read_preemptions(self, read: Callable[[], int]) -> None:
        """Ask ``read`` for the preemptions so far."""
        self._preemptions.set_function(self._name, read)


class Timing(NamedTuple):
    """What took how long, in seconds: from admission until the engine began, from then until the first
    token, and from that one until the last.
    """

    queue_s: float
    prefill_s: float
    decode_s: float


class RequestClock:
    """Times one admitted sequence, message by message, from ``admitted_s`` of the metrics' clock on."""

    def __init__(self, metrics: ModelMetrics, admitted_s: float) -> None:
        self._metrics = metrics
        self._started = self._begun = admitted_s
        self._first = self._last = 0.0

    def begun(self, begun_s: float) -> None:
        """The engine began with the request then, by the same clock."""
        self._begun = begun_s

    def looked_up(self, num_tokens: int, num_found: int) -> None:
        """The engine looked for the prompt's tokens in the cache."""
        self._metrics.prefix_cache_queries.inc(num_tokens)
        self._metrics.prefix_cache_hits.inc(num_found)

    def tokens(self, count: int) -> None:
        """``count`` tokens, at least one, came together from the engine."""
        now, metrics = self._metrics.clock(), self._metrics
        if not self._last:
            metrics.time_to_first_token.observe(now - self._started)
            metrics.tokens.first()
            self._first = self._last = now
            count -= 1
        if count:
            metrics.tokens.next(now - self._last, count)
            self._last = now

    def finished(self, reason: FinishReason) -> None:
        """The text ended."""
        self._metrics.succeeded(reason)
        self._metrics.e2e_request_latency.observe(self._metrics.clock() - self._started)

    def timing(self) -> Timing:
        """The times of a sequence that has ended; those of what it never came to are 0."""
        first, last = self._first or self._begun, self._last or self._begun
        return Timing(self._begun - self._started, first - self._begun, last - first)
