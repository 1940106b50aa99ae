"""What a server costs: CPU seconds and memory, of a process of ours or by a running server's metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from llm_grpc.errors import BenchError

INTERVAL_S = 1.0
"""Between two looks at a running server's memory; a peak between them is not seen."""

SCRAPE_LIMIT_S = 5.0


class Reading(NamedTuple):
    """CPU seconds since the server's start, and its memory: the peak where the system keeps it, else now."""

    cpu_s: float
    resident_bytes: int


Meter = Callable[[], Reading]
"""Reads once. Raises OSError or ValueError where it cannot."""


class Usage:
    """The cost of one run; None until it has ended, and where nobody could tell."""

    cpu_s: float | None = None
    peak_bytes: int | None = None


def process_meter(pid: int) -> Meter | None:
    """Read a process on this machine; None where there is no /proc (Linux has it).

    Memory is the largest since the process began, so loading the model counts.
    """
    directory = Path(f"/proc/{pid}")
    if not (directory / "stat").exists():
        return None
    ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read() -> Reading:
        # The name in parentheses may hold spaces; utime and stime are fields 14 and 15 of proc(5).
        fields = (directory / "stat").read_text().rpartition(")")[2].split()
        status = dict(line.partition(":")[::2] for line in (directory / "status").read_text().splitlines())
        return Reading(
            (int(fields[11]) + int(fields[12])) / ticks_per_s, int(status["VmHWM"].split()[0]) * 1024
        )

    return read


def metrics_meter(address: str) -> Meter:
    """Read what prometheus-client says of a server's process at http://ADDRESS/metrics."""
    names = ("process_cpu_seconds_total", "process_resident_memory_bytes")

    def read() -> Reading:
        url = f"http://{address}/metrics"
        with urllib.request.urlopen(url, timeout=SCRAPE_LIMIT_S) as response:
            families = text_string_to_metric_families(response.read().decode())
            found = {sample.name: sample.value for family in families for sample in family.samples}
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"{url} has no {missing[0]}")
        return Reading(found[names[0]], int(found[names[1]]))

    return read


@asynccontextmanager
async def metered(meter: Meter | None) -> AsyncIterator[Usage]:
    """Measure what the server uses inside the block.

    Raises:
        BenchError: the first reading failed. Where the last one does (the server died), the usage is unknown.
    """
    usage = Usage()
    if meter is None:
        yield usage
        return
    try:
        first = await asyncio.to_thread(meter)
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read the server's CPU time and memory: {error}") from error
    memory = [first.resident_bytes]
    sampling = asyncio.ensure_future(_sample(meter, memory))
    try:
        yield usage
    finally:
        sampling.cancel()
    with contextlib.suppress(OSError, ValueError):
        last = await asyncio.to_thread(meter)
        usage.cpu_s = last.cpu_s - first.cpu_s
        usage.peak_bytes = max(*memory, last.resident_bytes)


async def _sample(meter: Meter, memory: list[int]) -> None:
    while True:
        await asyncio.sleep(INTERVAL_S)
        with contextlib.suppress(OSError, ValueError):
            memory.append((await asyncio.to_thread(meter)).resident_bytes)
