"""transformers' continuous batching (paged attention over PyTorch's own kernels) in bfloat16."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation import ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.harness import MAX_RUNNING, Request, main

# Its defaults size the cache by the memory of a GPU; these are for 16 requests of up to 1,024 tokens.
CONFIG = ContinuousBatchingConfig(
    page_size=32,
    num_blocks=MAX_RUNNING * 1024 // 32,
    max_batch_tokens=256,
    max_requests_per_batch=MAX_RUNNING,
    allow_block_sharing=False,
    use_async_batching=False,
    use_cuda_graph=False,
)
HANG_S = 300.0


class Continuous:
    """A manager whose thread steps; results come through its queue, one for each token."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.processes = [os.getpid()]
        self.count = 0

    def run(self, requests: Sequence[Request]) -> None:
        """Hand all of them over at once; the manager queues what does not fit."""
        waiting = {}
        for request in requests:
            request.begin()
            self.count += 1
            name = f"request-{self.count}"
            waiting[name] = request
            self.manager.add_request(
                request.prompt, name, request.max_tokens, streaming=True, eos_token_id=-1
            )
        self._collect(waiting)

    def _collect(self, waiting: dict[str, Request]) -> None:
        last = time.perf_counter()
        while waiting:
            result = self.manager.get_result(timeout=1)
            if result is None:
                if not self.manager.is_running() or time.perf_counter() - last > HANG_S:
                    raise RuntimeError(
                        f"its thread ended: {self.manager.background_thread_status.fatal_error!r}"
                    )
                continue
            last = time.perf_counter()
            request = waiting[result.request_id]
            request.error = result.error
            request.stamp(len(result.generated_tokens) - len(request.times))
            if result.is_finished() or request.error:
                del waiting[result.request_id]


@contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Continuous]:
    """Load the checkpoint as it is, and start the thread."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1024)
    with model.continuous_batching_context_manager(settings, continuous_batching_config=CONFIG) as manager:
        yield Continuous(manager)


if __name__ == "__main__":
    main(load, ["transformers", "torch"])
