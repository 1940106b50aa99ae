"""One benchmark: ask what is served, warm it up, measure one load after the other."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import grpc
import uvloop

from llm_grpc.bench.drive import Run
from llm_grpc.bench.entry import Entry, ModelLimits
from llm_grpc.bench.load import Load, arriving, bounded, loads
from llm_grpc.bench.record import RunRecord
from llm_grpc.bench.report import ClientFacts, ModelFacts, Report, RunReport
from llm_grpc.bench.rpc import RpcSend, get_model, limits_of, open_channel
from llm_grpc.bench.settings import Settings, WorkloadSettings
from llm_grpc.bench.shapes import length_ranges, shape_entries
from llm_grpc.bench.statistics import summarize
from llm_grpc.bench.trace import load_trace, trace_entries
from llm_grpc.bench.usage import Meter, metered
from llm_grpc.errors import BenchError

log = logging.getLogger(__name__)

GET_MODEL_LIMIT_S = 30.0

WARMUP_OUTPUT_TOKENS = 16
"""Enough to run every part once; the rest of an answer is more of the same."""


def check(settings: Settings) -> None:
    """Find what no server could do, before one is started.

    Raises:
        BenchError: the settings do not go with each other, or the trace is none.
    """
    loads(settings.load, has_trace=settings.workload.trace is not None)
    if settings.workload.trace:
        load_trace(settings.workload.trace)
    else:
        length_ranges(settings.workload)


def measure(
    settings: Settings, address: str, meter: Meter | None, serve_flags: tuple[str, ...] | None
) -> Report:
    """Measure the server at `address`. SIGINT or SIGTERM ends it with what was measured so far.

    Raises:
        BenchError: the server does not answer, or the settings do not go with it or with each other.
    """
    with _signals_restored():
        return uvloop.run(_measure(settings, address, meter, serve_flags))


async def _measure(
    settings: Settings, address: str, meter: Meter | None, serve_flags: tuple[str, ...] | None
) -> Report:
    points = loads(settings.load, has_trace=settings.workload.trace is not None)
    stop = _stop_on_signals()
    async with open_channel(address) as channel:
        model = await get_model(channel, settings.target.model, GET_MODEL_LIMIT_S)
        report = Report(
            model=ModelFacts(
                name=model.name, digest=model.digest, architecture=model.architecture, weights=model.weights
            ),
            client=ClientFacts(),
            workload=describe(settings.workload),
            serve_flags=serve_flags,
            slo=settings.slo,
        )
        bench = _Bench(settings, channel, meter, limits_of(model), stop)
        await bench.warm_up()
        for point in points:
            if not stop.is_set():
                log.info("measuring at %s", point)
                record = await bench.run(point)
                summary = summarize(record, settings.slo)
                report.runs.append(RunReport(load=point, summary=summary, record=record))
    report.interrupted = stop.is_set()
    return report


class _Bench:
    """A server under measurement."""

    def __init__(
        self,
        settings: Settings,
        channel: grpc.aio.Channel,
        meter: Meter | None,
        limits: ModelLimits,
        stop: asyncio.Event,
    ) -> None:
        self._settings, self._channel, self._meter = settings, channel, meter
        self._limits, self._stop = limits, stop
        trace = settings.workload.trace
        self._trace = trace_entries(settings.workload, limits) if trace else None

    async def warm_up(self) -> None:
        """Send the first few requests together, and refuse to go on where none of them is answered."""
        count = self._settings.load.warmup
        entries = [
            replace(entry, output_tokens=min(entry.output_tokens, WARMUP_OUTPUT_TOKENS))
            for entry in islice(self._entries(), count)
        ]
        if not entries:
            return
        log.info("warming up with %d requests", len(entries))
        run = self._new_run()
        await self._unless_stopped(run.closed_loop(entries, len(entries), 0.0))
        if run.requests and all(request.error for request in run.requests):
            raise BenchError(f"no warm-up request was answered: {run.requests[0].error}")

    async def run(self, point: Load) -> RunRecord:
        """Measure one load."""
        load, workload = self._settings.load, self._settings.workload
        entries = bounded(self._entries(), load, has_trace=self._trace is not None)
        timed = arriving(entries, point, workload.seed, load.duration_s)
        async with metered(self._meter) as usage:
            cpu_s, run = time.process_time(), self._new_run()
            if point.kind == "concurrency":
                await self._unless_stopped(run.closed_loop(timed, int(point.value), load.duration_s))
            else:
                await self._unless_stopped(run.open_loop(timed))
            wall_s, cpu_s = run.now_s(), time.process_time() - cpu_s
        return RunRecord(
            requests=tuple(sorted(run.requests, key=lambda request: request.index)),
            wall_s=wall_s,
            cpu_s=usage.cpu_s,
            peak_bytes=usage.peak_bytes,
            client_cpu_s=cpu_s,
        )

    def _new_run(self) -> Run:
        target = self._settings.target
        # A salt of its own: no run finds the prompts of another one in the server's cache.
        salt = None if target.no_cache else secrets.token_hex(8)
        return Run(RpcSend(self._channel, target.model, target.timeout_s, salt))

    def _entries(self) -> Iterable[Entry]:
        return shape_entries(self._settings.workload, self._limits) if self._trace is None else self._trace

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends or a signal comes; requests in flight are then cancelled."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait({working})
        return None


def describe(workload: WorkloadSettings) -> str:
    """Say in a line what is sent."""
    if workload.trace:
        return f"trace {workload.trace}"
    words: list[str] = [workload.shape]
    if workload.shape == "shared-prefix":
        words.append(f"{workload.prefixes} prefixes of {workload.prefix_tokens} tokens")
    for name, value in (("prompt", workload.prompt_tokens), ("output", workload.output_tokens)):
        if value:
            words.append(f"{name} tokens {value}")
    return ", ".join([*words, f"seed {workload.seed}"])


def _stop_on_signals() -> asyncio.Event:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextmanager
def _signals_restored() -> Iterator[None]:
    """A loop that closes leaves SIGTERM to end the process at once: a server that we started would stay."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
