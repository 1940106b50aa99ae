"""optimum's ``ORTModelForCausalLM.generate``, int8: static padded batches, each until its longest is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from benchmarks.peers.harness import main
from benchmarks.peers.transformers.static_batches import Generate


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
