"""Latency and throughput against load, drawn with matplotlib: a PNG, or a page with the numbers beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from llm_grpc.bench.figures import heading, seconds, sections
from llm_grpc.bench.report import Report, RunReport
from llm_grpc.bench.statistics import Distribution, Slo, Summary

P50, P99, LIMIT, GRID = "#1b6ca8", "#d1495b", "#6c757d", "#e3e6ea"
"""Colours that stay apart for colour-blind readers and in grey."""

WIDE_SWEEP = 8.0
"""From this ratio of the largest load to the smallest on, the axis is logarithmic."""

FAR_LIMIT = 2.0
"""A limit that is more times above the largest p99 is not drawn: the curves would lie flat on the axis."""

AXES = {"rate": "offered load (requests/s)", "concurrency": "requests in flight", "trace": "arrivals"}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; max-width: 1000px; margin: 2rem auto; }
body { padding: 0 1rem; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; margin-top: 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem; text-align: right; border-bottom: 1px solid #e3e6ea; }
th:first-child { text-align: left; font-weight: 400; } thead th { font-weight: 600; }
tbody tr:first-child > * { border-top: 2px solid #adb5bd; }
"""


def save_chart(report: Report, path: Path) -> None:
    """Write a .png, or an .html page that needs no other file.

    Raises:
        OSError: the file cannot be written.
    """
    figure = draw(report)
    if path.suffix == ".png":
        figure.savefig(path, format="png", dpi=150)
    else:
        path.write_text(_page(report, figure), encoding="utf-8")


def draw(report: Report) -> Figure:
    """Four charts over one kind of load: three latencies (p50 and p99) and the throughput."""
    report = report.model_copy(update={"runs": sorted(report.runs, key=lambda run: run.load.value)})
    figure = Figure(figsize=(10, 7.2), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{report.model.name}: {report.workload}", fontsize=12, color="#212529", wrap=True)
    slo = report.slo or Slo()
    _latency(axes[0][0], report, "Time to first token", lambda s: s.ttft_s, slo.ttft_s)
    _latency(axes[0][1], report, "Time between tokens", lambda s: s.itl_s, slo.itl_s, " on the mean")
    _latency(axes[1][0], report, "Time to the whole answer", lambda s: s.e2e_s, slo.e2e_s)
    _throughput(axes[1][1], report)
    return figure


def _latency(
    axes: Any,
    report: Report,
    title: str,
    of: Callable[[Summary], Distribution | None],
    limit_s: float | None,
    limit_of: str = "",
) -> None:
    measured = [(run, found) for run in report.runs if (found := of(run.summary))]
    scale, unit = _unit([found.p99 for _, found in measured])
    runs = [run for run, _ in measured]
    for part, colour in (("p99", P99), ("p50", P50)):
        values = [getattr(found, part) * scale for _, found in measured]
        axes.plot(_positions(runs), values, color=colour, marker="o", linewidth=2, label=part)
    if limit_s is not None:
        axes.set_title(f"SLO {seconds(limit_s)}{limit_of}", loc="right", fontsize=9, color=LIMIT)
        if limit_s <= FAR_LIMIT * max((found.p99 for _, found in measured), default=0.0):
            axes.axhline(limit_s * scale, color=LIMIT, linestyle="--", linewidth=1.2, label="SLO")
    _finish(axes, report, title, unit)


def _throughput(axes: Any, report: Report) -> None:
    where = _positions(report.runs)
    all_tokens = [run.summary.output_tokens_per_s for run in report.runs]
    axes.plot(where, all_tokens, color=P50, marker="o", linewidth=2, label="all answers")
    if report.slo:
        good = [run.summary.goodput.output_tokens_per_s if run.summary.goodput else 0 for run in report.runs]
        axes.plot(where, good, color=LIMIT, marker="s", linewidth=2, linestyle="--", label="within the SLO")
    _finish(axes, report, "Throughput", "output tokens/s")


def _finish(axes: Any, report: Report, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if report.runs:
        _scale_loads(axes, report.runs)
        axes.legend(frameon=False, fontsize=9, loc="best")


def _scale_loads(axes: Any, runs: Sequence[RunReport]) -> None:
    where = _positions(runs)
    axes.set_xlabel(AXES[runs[0].load.kind])
    if min(where) > 0 and max(where) / min(where) >= WIDE_SWEEP:
        axes.set_xscale("log", base=2)
    axes.set_xticks(where, [heading(run.load).partition(" ")[0] for run in runs])
    axes.xaxis.set_minor_locator(NullLocator())


def _positions(runs: Sequence[RunReport]) -> list[float]:
    return [run.load.value for run in runs]


def _unit(values: Sequence[float]) -> tuple[float, str]:
    return (1.0, "seconds") if max(values, default=0.0) >= 1.0 else (1000.0, "milliseconds")


def _page(report: Report, figure: Figure) -> str:
    title = escape(f"{report.model.name}: {report.workload}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{_svg(figure)}\n{_table(report)}\n</body></html>\n"
    )


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return "<svg" + text.getvalue().partition("<svg")[2]  # what is before it is for a file of its own


def _table(report: Report) -> str:
    head = "".join(f"<th>{escape(heading(run.load))}</th>" for run in report.runs)
    bodies = []
    for per_run in zip(*(sections(run.summary) for run in report.runs), strict=True):
        rows = ["".join(_cells(cells)) for cells in zip(*per_run, strict=True)]
        bodies.append("<tbody>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</tbody>")
    return f"<table><thead><tr><th></th>{head}</tr></thead>{''.join(bodies)}</table>"


def _cells(cells: Sequence[tuple[str, str]]) -> list[str]:
    return [f"<th>{escape(cells[0][0])}</th>", *(f"<td>{escape(value)}</td>" for _, value in cells)]
