"""``python -m benchmarks.gpu``: models of real shapes on a GPU, through gRPC, beside other servers."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu import bandwidth, peers, works
from benchmarks.gpu.fill import fill
from benchmarks.gpu.kept import Kept, save
from benchmarks.gpu.machine import Machine, find_machine, gpu_meter, resident_meter
from benchmarks.gpu.results import ModelResult, SoakResult
from benchmarks.gpu.soak import Plan, soak
from benchmarks.gpu.table import page
from llm_grpc.cli.child_server import ChildServer, child_server, serve_command
from llm_grpc.errors import LLMGrpcError

START_LIMIT_S = 300.0
TOY_BYTES = 1 << 20
TOY_PLAN = Plan(duration_s=2.0, concurrency=4, most_prompt=16, most_output=16, interval_s=0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the skeletons, measure each, print and save. The exit code is 1 where anything failed."""
    arguments = _arguments(argv)
    machine = find_machine()
    if machine.bytes_per_s:
        copied = bandwidth.measure(TOY_BYTES if arguments.toy else bandwidth.COPIED_BYTES)
        machine = replace(machine, copied_bytes_per_s=copied)
    chosen = works.TOY_WORKS if arguments.toy else works.WORKS
    results: list[ModelResult] = []
    for directory in sorted(
        path.parent for path in arguments.skeletons.glob(f"{arguments.model}/weights.json")
    ):
        _say(f"weights for {directory.name}")
        fill(directory)
        results.append(_ours(directory, machine, chosen, arguments))
        if arguments.peer_python:
            results += peers.measure(arguments.peer_python, directory.name, chosen[0])
    day = datetime.now(UTC).date().isoformat()
    print(page(day, machine, results, chosen))
    if arguments.out:
        found = Kept(day, _commit(), machine, results)
        save(arguments.out, found, chosen)
    return 1 if not results or any(r.error and r.server == "llm-grpc" for r in results) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("skeletons", type=Path, help="directory of benchmarks.gpu.skeleton's")
    parser.add_argument("--model", default="*", help="one of them; results of others in --out are kept")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="directory for NAME.md and NAME.json, NAME that of the GPU")
    parser.add_argument("--soak-s", type=float, default=60.0, help="seconds; 0 leaves it out")
    parser.add_argument("--peer-python", default="", help="an interpreter with torch and transformers")
    parser.add_argument("--toy", action="store_true", help="little work, to see that all of it runs")
    return parser.parse_args(argv)


def _ours(
    directory: Path, machine: Machine, chosen: Sequence[works.Work], arguments: argparse.Namespace
) -> ModelResult:
    result = ModelResult(directory.name, "llm-grpc")
    if bytes_per_s := machine.copied_bytes_per_s or machine.bytes_per_s:
        result.decode_limit = works.decode_limit(directory, bytes_per_s)
    most = 8 if arguments.toy else 256
    flags = [f"--model={directory}", f"--device={arguments.device}", f"--max-running={most}"]
    # Random weights repeat themselves, and guesses would come true that no trained model rewards.
    flags += ["--no-prompt-lookup", "--max-waiting=1024"]
    try:
        with child_server(START_LIMIT_S, serve_command(flags)) as server:
            for work in chosen:
                _say(f"{directory.name}: {work.name}")
                result.figures += works.run(work, server)
            if arguments.soak_s:
                _say(f"{directory.name}: soak")
                result.soak = _soaked(server, arguments)
    except LLMGrpcError as error:
        result.error = " ".join(str(error).split())
        _say(result.error)
    return result


def _soaked(server: ChildServer, arguments: argparse.Namespace) -> SoakResult:
    meters = {"server": resident_meter(server.pid)}
    if arguments.device != "cpu":
        meters["GPU"] = gpu_meter()
    plan = TOY_PLAN if arguments.toy else Plan(duration_s=arguments.soak_s)
    found = asyncio.run(soak(server.address, plan, meters))
    growth = {name: found.growth_bytes(name) for name in meters}
    return SoakResult(found.finished, found.cancelled, found.tokens, found.errors, growth)


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
