"""``python -m benchmarks.peers``: the same work by everybody, side by side."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.peers.contestants import Contestant, chosen
from benchmarks.peers.environments import REPOSITORY, cache_root, python_of
from benchmarks.peers.harness import WORKS
from benchmarks.peers.limits import Machine, limits, measure
from benchmarks.peers.models import model_of
from benchmarks.peers.rounds import Entry, Outcome, Settings, run_rounds
from benchmarks.peers.table import tables

TRACE = REPOSITORY / "tests" / "data" / "trace.json"


def main() -> int:
    """Prepare, run, print. The exit code is 1 where any run failed."""
    arguments = _arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    contestants = chosen(arguments.contestants)
    entries, outcomes = _prepare(contestants, arguments)
    if arguments.prepare:
        return 1 if outcomes else 0
    machine = measure(arguments.threads)
    settings = Settings(TRACE, arguments.threads, arguments.timeout_s, arguments.smoke)
    for outcome in run_rounds(entries, arguments.works, arguments.rounds, settings):
        _progress(outcome)
        outcomes.append(outcome)
    report = _report(contestants, outcomes, machine, arguments)
    print(report)
    if arguments.out:
        _save(arguments.out, report, outcomes, machine)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--works", type=_works, default=list(WORKS), help="some of trace,single,decode")
    parser.add_argument(
        "--contestants", default="", help="parts of their names, separated by commas; all of them"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads and CPUs of each contestant")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="of one run")
    parser.add_argument(
        "--cache", type=Path, default=cache_root(), help="environments and models (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="directory for table.md and results.json")
    parser.add_argument("--prepare", action="store_true", help="make environments and models, run nothing")
    parser.add_argument("--smoke", action="store_true", help="cut the work down, to see that all of it runs")
    return parser.parse_args()


def _works(text: str) -> list[str]:
    works = [work.strip() for work in text.split(",")]
    if unknown := [work for work in works if work not in WORKS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(WORKS)}")
    return works


def _prepare(
    contestants: Sequence[Contestant], arguments: argparse.Namespace
) -> tuple[list[Entry], list[Outcome]]:
    """Those that are ready; for each work of the others an outcome that says why they are not."""
    entries: list[Entry] = []
    failed: list[Outcome] = []
    for contestant in contestants:
        _say(f"preparing {contestant.name}")
        try:
            model = model_of(contestant, arguments.cache, arguments.threads)
            python = python_of(contestant.environment, arguments.cache)
        except (OSError, subprocess.CalledProcessError) as error:
            _say(f"  {error}")
            failed += [
                Outcome(contestant.name, work, 0, error=f"not prepared: {error}") for work in arguments.works
            ]
            continue
        entries.append(Entry(contestant.name, (str(python), str(contestant.path)), model))
    return entries, failed


def _report(
    contestants: Sequence[Contestant],
    outcomes: Sequence[Outcome],
    machine: Machine,
    arguments: argparse.Namespace,
) -> str:
    trace = json.loads(TRACE.read_text(encoding="utf-8"))["requests"]
    lengths = [(len(entry["prompt_token_ids"]), entry["output_tokens"]) for entry in trace]
    # Work that was cut down has nothing to do with the limits.
    bounds = {} if arguments.smoke else {c.name: limits(machine, c.format, lengths) for c in contestants}
    parts = [*_heading(machine, arguments), tables(outcomes, bounds), *_notes(contestants, outcomes)]
    return "\n\n".join(parts)


def _heading(machine: Machine, arguments: argparse.Namespace) -> Iterator[str]:
    day = datetime.now(UTC).date().isoformat()
    rounds = f"medians of {arguments.rounds} rounds (least..most)"
    yield f"{day}, {_processor()}, {arguments.threads} threads each, {rounds}."
    if arguments.smoke:
        yield "**The work was cut down to see that it runs: no figure here means anything.**"
    rates = ", ".join(f"{'x'.join(map(str, shape))} {rate / 1e9:.0f}" for shape, rate in machine.gemm.items())
    yield f"Limits: memory read {machine.bandwidth / 1e9:.1f} GB/s; int8 GEMM, GFLOP/s: {rates}."


def _notes(contestants: Sequence[Contestant], outcomes: Sequence[Outcome]) -> Iterator[str]:
    versions = {outcome.name: outcome.versions for outcome in outcomes if outcome.versions}
    yield "\n".join(f"- {c.name}: {_versions(versions.get(c.name, {}))}{c.note}" for c in contestants)


def _versions(found: Mapping[str, str]) -> str:
    return (
        "".join(f"{name} {version}, " for name, version in found.items()).removesuffix(", ") + "; "
        if found
        else ""
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _progress(outcome: Outcome) -> None:
    found = ", ".join(f"{name} {value:.4g}" for name, value in outcome.figures.items())
    _say(f"round {outcome.round + 1}, {outcome.work}, {outcome.name}: {outcome.error or found}")


def _save(directory: Path, report: str, outcomes: Sequence[Outcome], machine: Machine) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "table.md").write_text(report + "\n", encoding="utf-8")
    gemm = {"x".join(map(str, shape)): rate for shape, rate in machine.gemm.items()}
    result = {
        "machine": {"processor": _processor(), "bandwidth": machine.bandwidth, "gemm": gemm},
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    (directory / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
