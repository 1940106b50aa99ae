"""The results in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import ModelResult
from benchmarks.gpu.targets import TARGETS
from benchmarks.gpu.works import Figures, Work

UNITS = {
    "output_tokens_per_s": "tokens/s",
    "total_tokens_per_s": "tokens/s, prompts included",
    "prompt_tokens_per_s": "prompt tokens/s",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "itl_p50_ms": "inter-token p50 ms",
    "itl_p99_ms": "inter-token p99 ms",
}


def page(day: str, machine: Machine, results: Sequence[ModelResult], works: Sequence[Work]) -> str:
    """A heading that names the machine, and a table for each work; rows are models and loads."""
    parts = [f"# {machine.gpu}", _facts(day, machine)]
    for work in works:
        rows = [
            (r.model, r.server, figures)
            for r in results
            for figures in r.figures
            if figures.work == work.name
        ]
        if rows:
            parts.append(f"## {work.title or work.name}\n\n" + "\n".join(_table(work, rows, results)))
    parts += [text for result in results if (text := _soak(result))]
    return "\n\n".join([*parts, *_failures(results)]) + "\n"


def _facts(day: str, machine: Machine) -> str:
    memory = f", memory of {machine.bytes_per_s / 1e9:,.0f} GB/s by its clock" if machine.bytes_per_s else ""
    if machine.copied_bytes_per_s:
        memory += f", of {machine.copied_bytes_per_s / 1e9:,.0f} GB/s where it copies"
    return f"{day}, driver {machine.driver}{memory}; {machine.runtime}; {machine.processors} processors."


def _table(
    work: Work, rows: Sequence[tuple[str, str, Figures]], results: Sequence[ModelResult]
) -> Iterator[str]:
    limits = {r.model: r.decode_limit for r in results if r.decode_limit} if work.name == "single" else {}
    targets = {model for model, _, _ in rows if (work.name, model) in TARGETS}
    extra = ["limit by memory" if limits else "published elsewhere", "share"] if limits or targets else []
    yield _line(
        ["model", "server", "load", *(UNITS.get(name, name) for name in work.figures), *extra, "failed"]
    )
    yield _line(["---"] * (4 + len(work.figures) + len(extra)))
    for model, server, figures in rows:
        cells = [_number(figures.found.get(name)) for name in work.figures]
        beside = _limit(figures, model, limits) or (_target(figures, model) if targets else [])
        yield _line([model, server, figures.load, *cells, *beside, _failed(figures)])


def _limit(figures: Figures, model: str, limits: Mapping[str, float]) -> list[str]:
    if not limits:
        return []
    limit, found = limits.get(model), figures.found.get("output_tokens_per_s")
    return [_number(limit), f"{found / limit:.0%}" if found and limit else "-"]


def _target(figures: Figures, model: str) -> list[str]:
    """By output tokens, as such figures are published."""
    target, found = TARGETS.get((figures.work, model)), figures.found.get("output_tokens_per_s")
    if target is None:
        return ["-", "-"]
    told = f"{_number(target.tokens_per_s)} ({target.source})"
    return [told, f"{found / target.tokens_per_s:.0%}" if found else "-"]


def _soak(result: ModelResult) -> str:
    if not result.soak:
        return ""
    growth = ", ".join(f"{name} {value / 2**20:+.1f} MiB" for name, value in result.soak.growth_bytes.items())
    failed = ", ".join(f"{count} {name}" for name, count in result.soak.errors.items()) or "none"
    return (
        f"Soak of {result.model}: {result.soak.finished} requests answered, {result.soak.cancelled} "
        f"cancelled by the caller, failed: {failed}; memory from the second quarter to the last: {growth}."
    )


def _failures(results: Sequence[ModelResult]) -> Iterator[str]:
    for result in results:
        if result.error:
            yield f"{result.server} did not run {result.model}: {result.error}"


def _failed(figures: Figures) -> str:
    return str(sum(figures.errors.values()))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
