"""onnxruntime-genai: static batches with ``Generator`` (its continuous batching is for CUDA)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from benchmarks.peers.harness import Request, batches, main, padded

NO_TOKEN = 151_000
"""End-of-sequence is this id and ``min_length`` forbids it: there is no switch to turn it off."""


class Generators:
    """A new ``Generator`` for each batch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.processes = [os.getpid()]

    def run(self, requests: Sequence[Request]) -> None:
        """Serve them in order of arrival."""
        for batch in batches(requests):
            self._run_batch(batch)

    def _run_batch(self, batch: Sequence[Request]) -> None:
        ids, _ = padded(batch)
        length = len(ids[0]) + max(request.max_tokens for request in batch)
        for request in batch:
            request.begin()
        params = og.GeneratorParams(self.model)
        params.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=len(batch)
        )
        generator = og.Generator(self.model, params)
        generator.append_tokens(np.array(ids if len(batch) > 1 else ids[0], np.int32))
        while not all(request.is_done for request in batch):
            generator.generate_next_token()
            for request in batch:
                request.stamp()


@contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Generators]:
    """Load what its builder wrote."""
    config = og.Config(str(model_dir))
    session = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"eos_token_id": NO_TOKEN, "decoder": {"session_options": session}}}))
    yield Generators(og.Model(config))


if __name__ == "__main__":
    main(load, ["onnxruntime-genai", "onnxruntime"])
