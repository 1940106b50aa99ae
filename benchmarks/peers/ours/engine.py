"""Our scheduler and runner alone, in this process: what remains when gRPC and text are taken away."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.harness import MAX_RUNNING, Request, main
from llm_grpc.config import EngineConfig
from llm_grpc.engine.request import Request as EngineRequest
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.slots import Slots
from llm_grpc.engine.warm_up import warm_up
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.sampling_params import SamplingParams

CONTEXT_TOKENS = 1024


class Engine:
    """Plan, run, commit, until nothing is left."""

    def __init__(self, scheduler: Scheduler, runner: SlotRunner) -> None:
        self.scheduler, self.runner = scheduler, runner
        self.processes = [os.getpid()]
        self.count = 0

    def run(self, requests: Sequence[Request]) -> None:
        """Queue all of them at once."""
        by_id = {}
        for request in requests:
            request.begin()
            self.count += 1
            by_id[self.count] = request
            self.scheduler.add(_engine_request(self.count, request))
        while plan := self.scheduler.schedule():
            for event in self.scheduler.commit(plan, self.runner.run(plan)):
                by_id[event.request_id].stamp()


def _engine_request(number: int, request: Request) -> EngineRequest:
    params = SamplingParams(max_tokens=request.max_tokens, ignore_eos=True, cache_disabled=True)
    return EngineRequest(number, tuple(request.prompt), params)


@contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Engine]:
    """Load an exported model with the server's own defaults."""
    manifest = load_manifest(model_dir)
    runner = SlotRunner(model_dir, manifest, MAX_RUNNING, CONTEXT_TOKENS, threads)
    chunk_tokens = EngineConfig().chunk_tokens
    budget = replace(warm_up(runner, MAX_RUNNING, chunk_tokens), num_guesses=0)
    scheduler = Scheduler(Slots(MAX_RUNNING, CONTEXT_TOKENS), CONTEXT_TOKENS, chunk_tokens, (), budget)
    yield Engine(scheduler, runner)


if __name__ == "__main__":
    main(load, ["llm-grpc", "onnxruntime"])
