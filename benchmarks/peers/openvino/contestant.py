"""openvino-genai's ``ContinuousBatchingPipeline``, stepped by us."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as og

from benchmarks.peers.harness import MAX_RUNNING, Request, main

CACHE_GB = 2
STEP_TOKENS = 512


class Pipeline:
    """Requests go in, ``step`` moves all of them, handles give tokens."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.processes = [os.getpid()]

    def run(self, requests: Sequence[Request]) -> None:
        """Hand over as many as may run; the next one when one has ended.

        With ``dynamic_split_fuse`` the library's scheduler starts all that it has, whatever ``max_num_seqs``
        says (``_schedule_prompt_phase_dynamic_split_fuse`` in its scheduler.hpp does not look at it).
        """
        waiting, running = deque(enumerate(requests)), list[tuple[Request, Any]]()
        while waiting or running:
            while waiting and len(running) < MAX_RUNNING:
                number, request = waiting.popleft()
                running.append((request, self._add(number, request)))
            self.pipeline.step()
            for request, handle in running:
                if handle.can_read():
                    request.stamp(sum(len(output.generated_ids) for output in handle.read().values()))
            running = [(request, handle) for request, handle in running if not request.is_done]

    def _add(self, number: int, request: Request) -> Any:
        request.begin()
        settings = og.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = request.max_tokens
        settings.ignore_eos, settings.do_sample = True, False
        return self.pipeline.add_request(number, ov.Tensor(np.array([request.prompt], np.int64)), settings)


@contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Pipeline]:
    """Load what optimum-intel wrote."""
    scheduler = og.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs = CACHE_GB, MAX_RUNNING
    scheduler.max_num_batched_tokens, scheduler.dynamic_split_fuse = STEP_TOKENS, True
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": threads}
    yield Pipeline(og.ContinuousBatchingPipeline(str(model_dir), scheduler, "CPU", properties))


if __name__ == "__main__":
    main(load, ["openvino-genai", "openvino"])
