"""``generate`` of transformers, and of what is built on it, in static padded batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.harness import Request, batches, padded


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
        with torch.inference_mode():
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
