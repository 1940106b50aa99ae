"""The figures of a run in words, and the table that a terminal shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from llm_grpc.bench.load import Load
from llm_grpc.bench.report import Report, RunReport
from llm_grpc.bench.statistics import Distribution, Summary
from llm_grpc.machine import format_bytes

COLUMNS = 4
"""Runs beside each other in 80 columns."""

UNKNOWN = "-"

Row = tuple[str, str]
Section = list[Row]


def print_report(report: Report, console: Console) -> None:
    """Print every run, then what went wrong."""
    weights = f" ({report.model.architecture}, {report.model.weights})" if report.model.weights else ""
    console.print(f"{report.model.name}{weights}: {report.workload}", highlight=False, markup=False)
    for first in range(0, len(report.runs), COLUMNS):
        console.print(_table(report.runs[first : first + COLUMNS]))
    for run in report.runs:
        for error, count in run.summary.errors.items():
            console.print(f"{run.load}: {count} x {error}", highlight=False, markup=False)


def _table(runs: Sequence[RunReport]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for run in runs:
        table.add_column(heading(run.load), justify="right", no_wrap=True)
    for number, per_run in enumerate(zip(*(sections(run.summary) for run in runs), strict=True)):
        if number:
            table.add_row()
        for cells in zip(*per_run, strict=True):
            table.add_row(cells[0][0], *(value for _, value in cells))
    return table


def heading(load: Load) -> str:
    """Name a load in a column."""
    return {"rate": f"{load.value:g} req/s", "concurrency": f"{load.value:g} at once"}.get(load.kind, "trace")


def sections(summary: Summary) -> list[Section]:
    """Every figure as a label and a text; the labels are the same for all runs."""
    found = [
        [
            ("answered", f"{summary.completed} of {summary.requests}"),
            ("duration", seconds(summary.wall_s)),
            ("requests/s", f"{summary.requests_per_s:.2f}"),
            ("output tokens/s", f"{summary.output_tokens_per_s:.1f}"),
        ],
        list(_latency("first token", summary.ttft_s)),
        list(_latency("between tokens", summary.itl_s)),
        list(_latency("whole answer", summary.e2e_s)),
        _goodput(summary),
        [
            ("server CPU", seconds(summary.cpu_s)),
            ("server peak memory", _bytes(summary.peak_bytes)),
            ("prompt from cache", _share(summary.cached_tokens, summary.prompt_tokens)),
            ("client CPU", seconds(summary.client_cpu_s)),
            ("client late, p99", seconds(summary.start_delay_s.p99 if summary.start_delay_s else None)),
        ],
    ]
    return [section for section in found if section]


def seconds(value: float | None) -> str:
    """``0.42 ms``, ``42.0 ms``, ``4.20 s``."""
    if value is None:
        return UNKNOWN
    if value < 1.0:
        return f"{value * 1000:.{1 if value >= 0.01 else 2}f} ms"
    return f"{value:.2f} s"


def _latency(name: str, found: Distribution | None) -> Iterator[Row]:
    for part in ("mean", "p50", "p90", "p99"):
        yield f"{name}, {part}", seconds(getattr(found, part) if found else None)


def _goodput(summary: Summary) -> Section:
    goodput = summary.goodput
    if goodput is None:
        return []
    return [
        ("good requests", f"{goodput.share:.1%}"),
        ("good requests/s", f"{goodput.requests_per_s:.2f}"),
        ("good tokens/s", f"{goodput.output_tokens_per_s:.1f}"),
    ]


def _bytes(count: int | None) -> str:
    return UNKNOWN if count is None else format_bytes(count)


def _share(part: int | None, whole: int) -> str:
    return UNKNOWN if part is None or not whole else f"{part / whole:.1%}"
