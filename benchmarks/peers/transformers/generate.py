"""transformers' ``generate`` in bfloat16: static batches, padded, each until its longest request is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.harness import main
from benchmarks.peers.transformers.static_batches import Generate


@contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Generate]:
    """Load the checkpoint as it is."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    yield Generate(model)


if __name__ == "__main__":
    main(load, ["transformers", "torch"])
