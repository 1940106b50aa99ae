"""What every contestant's script does besides calling its library. Needs nothing but Python.

A script is called ``python contestant.py WORK MODEL_DIR --trace FILE --record OUT.json``. It loads the model,
warms it up, does the work and writes one record (see ``record.py``). Times are seconds since the work began.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

MAX_RUNNING = 16
SINGLE_PROMPT, SINGLE_TOKENS = 512, 128
DECODE_CONTEXT, DECODE_TOKENS = 256, 128
DECODE_RUNNING = (1, 4, 8, 16)
WORKS = ("trace", "single", "decode")
_FIRST_ID, _LAST_ID = 300, 7900
"""Ids that are ordinary tokens of the checkpoint's tokenizer."""


@dataclass
class Request:
    """One request and when its tokens reached the caller."""

    index: int
    prompt: list[int]
    max_tokens: int
    due: float = 0.0
    group: int = 0
    start: float = 0.0
    times: list[float] = field(default_factory=list)
    error: str | None = None
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.prompt)

    @property
    def is_done(self) -> bool:
        """Whether all of its tokens have come."""
        return len(self.times) >= self.max_tokens

    def begin(self) -> None:
        """The request is handed to the library."""
        self.start = time.perf_counter()

    def stamp(self, count: int = 1) -> None:
        """``count`` tokens have just come. Those beyond what was asked for do not count: a batch runs on."""
        now = time.perf_counter()
        self.times += [now] * min(count, self.max_tokens - len(self.times))

    def as_record(self, start: float) -> dict[str, Any]:
        """For the record's ``requests``."""
        return {
            "index": self.index,
            "group": self.group,
            "due_s": self.due - start,
            "start_s": self.start - start,
            "token_times_s": [time - start for time in self.times],
            "prompt_tokens": self.prompt_tokens,
            "max_tokens": self.max_tokens,
            "error": self.error,
        }


class Contestant(Protocol):
    """A loaded model. ``run`` returns when every request is done or has an error."""

    def run(self, requests: Sequence[Request]) -> None:
        """Serve requests that are all due now, at most ``MAX_RUNNING`` of them at a time."""

    @property
    def processes(self) -> Sequence[int]:
        """Ids of the processes whose CPU time and memory count."""


Load = Callable[[Path, int], AbstractContextManager[Contestant]]


def main(load: Load, packages: Sequence[str]) -> None:
    """Be a contestant's script. ``load`` gets the model's directory and the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="cut the work down, to see that it runs")
    arguments = parser.parse_args()
    with load(arguments.model, arguments.threads) as contestant:
        _warm_up(contestant)
        groups = list(requests_of(arguments.work, arguments.trace))
        groups = [cut_down(group) for group in groups] if arguments.smoke else groups
        record = _measure(contestant, groups)
    record["versions"] = {package: metadata.version(package) for package in packages}
    record["work"] = arguments.work
    arguments.record.write_text(json.dumps(record), encoding="utf-8")


def requests_of(work: str, trace: Path) -> Iterator[list[Request]]:
    """The work as groups of requests; a group begins when the one before it has ended."""
    if work == "trace":
        entries = json.loads(trace.read_text(encoding="utf-8"))["requests"]
        yield [
            Request(i, entry["prompt_token_ids"], entry["output_tokens"]) for i, entry in enumerate(entries)
        ]
    elif work == "single":
        yield [Request(0, random_prompt(SINGLE_PROMPT, seed=7), SINGLE_TOKENS)]
    else:
        for running in DECODE_RUNNING:
            yield [
                Request(i, random_prompt(DECODE_CONTEXT, seed=i), DECODE_TOKENS, group=running)
                for i in range(running)
            ]


def cut_down(requests: Sequence[Request]) -> list[Request]:
    """Short prompts, few tokens."""
    return [
        Request(request.index, request.prompt[:48], min(request.max_tokens, 4 + i % 5), group=request.group)
        for i, request in enumerate(requests)
    ]


def random_prompt(length: int, seed: int) -> list[int]:
    """The same ids for the same seed."""
    rng = random.Random(seed)
    return [rng.randrange(_FIRST_ID, _LAST_ID) for _ in range(length)]


def batches(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """For libraries that take a batch and return when all of it is done: batches in order of arrival."""
    for start in range(0, len(requests), MAX_RUNNING):
        yield requests[start : start + MAX_RUNNING]


def padded(batch: Sequence[Request], pad: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and mask of a batch, padded on the left to its longest prompt."""
    width = max(len(request.prompt) for request in batch)
    ids = [[pad] * (width - len(request.prompt)) + request.prompt for request in batch]
    mask = [[0] * (width - len(request.prompt)) + [1] * len(request.prompt) for request in batch]
    return ids, mask


def _warm_up(contestant: Contestant) -> None:
    """Kernels are chosen, packed and given their memory on first use: alone, and with all rows."""
    contestant.run([Request(0, random_prompt(64, seed=1), 8)])
    contestant.run([Request(i, random_prompt(32, seed=i), 4) for i in range(MAX_RUNNING)])


def _measure(contestant: Contestant, groups: Sequence[Sequence[Request]]) -> dict[str, Any]:
    cpu, start = _cpu_s(contestant.processes), time.perf_counter()
    for group in groups:
        due = time.perf_counter()
        for request in group:
            request.due = request.start = due
        contestant.run(group)
        if most_running(group) > MAX_RUNNING:
            raise RuntimeError(f"{most_running(group)} requests ran at once, and {MAX_RUNNING} may")
    wall = time.perf_counter() - start
    return {
        "requests": [request.as_record(start) for group in groups for request in group],
        "cpu_s": _cpu_s(contestant.processes) - cpu,
        "peak_bytes": sum(_peak_bytes(process) for process in contestant.processes),
        "wall_s": wall,
    }


def most_running(requests: Sequence[Request]) -> int:
    """The most requests that were between their first token and their last at any one time."""
    spans = [(request.times[0], request.times[-1]) for request in requests if request.times]
    return max((sum(first <= at <= last for first, last in spans) for at, _ in spans), default=0)


def _cpu_s(processes: Sequence[int]) -> float:
    ticks = 0
    for process in processes:
        # The name, in parentheses, may hold spaces.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
