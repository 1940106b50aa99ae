"""The outcomes side by side, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.figures import Spread, spread
from benchmarks.peers.harness import DECODE_RUNNING
from benchmarks.peers.rounds import Outcome

Limits = Mapping[str, Mapping[str, float]]
"""By contestant, then by figure."""


@dataclass(frozen=True)
class Column:
    """One figure of one work."""

    figure: str
    heading: str
    scale: float = 1.0
    digits: int = 1
    has_limit: bool = False


COST = (Column("cpu_s", "CPU s"), Column("peak_bytes", "memory MB", 1e-6, 0))
COLUMNS: Mapping[str, Sequence[Column]] = {
    "trace": (
        Column("tokens_per_s", "tok/s", has_limit=True),
        Column("ttft_p50_s", "TTFT p50 s", digits=2),
        Column("ttft_p99_s", "TTFT p99 s", digits=2),
        Column("itl_p50_s", "inter-token p50 ms", 1e3, 0),
        Column("itl_p99_s", "inter-token p99 ms", 1e3, 0),
        *COST,
    ),
    "single": (
        Column("prefill_tokens_per_s", "prefill tok/s", digits=0, has_limit=True),
        Column("decode_tokens_per_s", "decode tok/s", has_limit=True),
        *COST,
    ),
    "decode": (
        *(Column(f"tokens_per_s_{n}", f"{n} running, tok/s", has_limit=True) for n in DECODE_RUNNING),
        *COST,
    ),
}
TITLES = {
    "trace": "The trace: 32 requests, at most 16 running, all due at once",
    "single": "One request: 512 tokens in, 128 out",
    "decode": "Decoding together from a context of 256 tokens",
}


def tables(outcomes: Sequence[Outcome], limits: Limits) -> str:
    """A table for each work that was done, contestants in the order of their first outcome."""
    works = dict.fromkeys(outcome.work for outcome in outcomes)
    return "\n\n".join(_table(work, [o for o in outcomes if o.work == work], limits) for work in works)


def _table(work: str, outcomes: Sequence[Outcome], limits: Limits) -> str:
    columns = COLUMNS[work]
    headings = ["contestant", *(heading for column in columns for heading in _headings(column))]
    lines = [f"### {TITLES[work]}", "", _line(headings), _line(["---"] * len(headings))]
    names = sorted({o.name: o for o in outcomes}, key=_position(outcomes))
    lines += [
        _row(name, columns, [o for o in outcomes if o.name == name], limits.get(name, {})) for name in names
    ]
    return "\n".join(lines)


def _position(outcomes: Sequence[Outcome]) -> Callable[[str], int]:
    """Every other round runs backwards; the first one is in the order of the list."""
    first = min(outcome.round for outcome in outcomes)
    names = [outcome.name for outcome in outcomes if outcome.round == first]
    return lambda name: names.index(name) if name in names else len(names)


def _headings(column: Column) -> list[str]:
    return [column.heading, "limit", "share"] if column.has_limit else [column.heading]


def _row(
    name: str, columns: Sequence[Column], outcomes: Sequence[Outcome], limits: Mapping[str, float]
) -> str:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    found = spread([outcome.figures for outcome in outcomes if outcome.error is None])
    cells = [cell for column in columns for cell in _cells(column, found, limits)]
    if errors:
        failure = f"failed in {len(errors)} of {len(outcomes)} rounds: {_escaped(errors[-1])}"
        name = f"{name} ({failure})"
    return _line([name, *cells])


def _cells(column: Column, found: Mapping[str, Spread], limits: Mapping[str, float]) -> list[str]:
    value = found.get(column.figure)
    cells = [_spread(value, column) if value else "-"]
    if column.has_limit:
        limit = limits.get(column.figure)
        cells.append(_number(limit, column) if limit else "-")
        cells.append(f"{value.median / limit:.0%}" if value and limit else "-")
    return cells


def _spread(value: Spread, column: Column) -> str:
    median = _number(value.median, column)
    if value.least == value.most:
        return median
    return f"{median} ({_number(value.least, column)}..{_number(value.most, column)})"


def _number(value: float, column: Column) -> str:
    return f"{value * column.scale:.{column.digits}f}"


def _escaped(text: str) -> str:
    """In one cell, and not longer than a cell can be."""
    text = text.replace("|", "\\|")
    return text if len(text) <= 200 else f"{text[:197]}..."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
