"""When requests are sent: at a rate, at a concurrency, or at a trace's own times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Literal

import numpy as np

from llm_grpc.bench.entry import Entry
from llm_grpc.bench.settings import LoadSettings
from llm_grpc.errors import BenchError

DEFAULT_REQUESTS = 64
"""Of a run of a shape that has no other end."""


@dataclass(frozen=True, slots=True)
class Load:
    """One point of a sweep. ``value`` is requests per second or in flight; 0 for a trace's own times."""

    kind: Literal["rate", "concurrency", "trace"]
    value: float = 0.0

    def __str__(self) -> str:
        units = {"rate": f"{self.value:g} requests/s", "concurrency": f"concurrency {self.value:g}"}
        return units.get(self.kind, "the trace's times")


def loads(settings: LoadSettings, *, has_trace: bool) -> list[Load]:
    """The points to measure, in the order given.

    Raises:
        BenchError: both rates and concurrencies are given: their figures would not share an axis.
    """
    if settings.rate and settings.concurrency:
        raise BenchError("--rate and --concurrency cannot be swept together: measure one after the other")
    if settings.rate:
        return [Load("rate", rate) for rate in settings.rate]
    if settings.concurrency or not has_trace:
        return [Load("concurrency", float(count)) for count in settings.concurrency or (1,)]
    return [Load("trace")]


def bounded(entries: Iterable[Entry], settings: LoadSettings, *, has_trace: bool) -> Iterator[Entry]:
    """The entries of one run, before time ends it."""
    no_end = not (has_trace or settings.duration_s)
    most = settings.requests or (DEFAULT_REQUESTS if no_end else None)
    return islice(entries, most)


def arriving(entries: Iterable[Entry], load: Load, seed: int, duration_s: float) -> Iterator[Entry]:
    """Give entries their arrival times at `load`, and end with the duration. 0 is no limit.

    Poisson arrivals: the gaps are exponential with mean 1/rate. The times are the same for every run with one
    seed and scale with the rate, so that the points of a sweep differ in nothing else.
    """
    timed = _poisson(entries, load.value, seed) if load.kind == "rate" else iter(entries)
    if duration_s and load.kind != "concurrency":
        return takewhile(lambda entry: entry.arrival_s < duration_s, timed)
    return timed


def _poisson(entries: Iterable[Entry], rate: float, seed: int) -> Iterator[Entry]:
    # A stream of its own: the draws of prompts and of times do not shift each other.
    draw = np.random.default_rng((seed, 1))
    now_s = 0.0
    for entry in entries:
        now_s += float(draw.exponential(1.0)) / rate
        yield replace(entry, arrival_s=now_s)
