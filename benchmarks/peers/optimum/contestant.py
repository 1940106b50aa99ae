"""optimum's ``ORTModelForCausalLM.generate``, int8: static padded batches, each until its longest is done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.harness import Request, batches, main, padded


class StampEachStep(StoppingCriteria):
    """Never stops anything; ``generate`` calls it after each step, with any number of rows."""

    def __init__(self, batch: Sequence[Request]) -> None:
        self.batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Stamp a token of each request that still wants one."""
        for request in self.batch:
            request.stamp()
        return torch.zeros(len(self.batch), dtype=torch.bool)


class Generate:
    """``generate``, a batch at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.processes = [os.getpid()]

    def run(self, requests: Sequence[Request]) -> None:
        """Serve them in order of arrival."""
        for batch in batches(requests):
            self._run_batch(batch)

    def _run_batch(self, batch: Sequence[Request]) -> None:
        ids, mask = padded(batch)
        tokens = max(request.max_tokens for request in batch)
        for request in batch:
            request.begin()
        self.model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([StampEachStep(batch)]),
        )


@contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Generate]:
    """Load the quantised graph."""
    torch.set_num_threads(threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(
        model_dir, session_options=options, provider="CPUExecutionProvider", use_io_binding=False
    )
    model.generation_config.eos_token_id = None
    yield Generate(model)


if __name__ == "__main__":
    main(load, ["optimum-onnx", "optimum", "transformers", "torch", "onnxruntime"])
