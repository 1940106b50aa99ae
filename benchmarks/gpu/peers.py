"""Other servers of the same shapes on the same GPU, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from benchmarks.gpu.results import ModelResult
from benchmarks.gpu.shapes import CONTEXT_TOKENS, SHAPES
from benchmarks.gpu.works import Figures, Work
from llm_grpc.bench.entry import ModelLimits
from llm_grpc.bench.settings import WorkloadSettings
from llm_grpc.bench.shapes import shape_entries

HERE = Path(__file__).parent
PEERS = ("transformers generate", "transformers continuous", "vllm")
LIMIT_S = 300.0


def measure(
    python: str, model: str, work: Work, device: str = "cuda", peers: Sequence[str] = PEERS
) -> list[ModelResult]:
    """Run ``work``'s requests through each of ``peers``, all handed over at once."""
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "given.json"
        given.write_text(json.dumps(requests(model, work)), encoding="utf-8")
        return [_run(python, peer, model, work, given, device) for peer in peers]


def requests(model: str, work: Work) -> dict[str, object]:
    """The shape's configuration and the requests that ``works.run`` sends for ``work``."""
    shape = SHAPES[model]
    limits = ModelLimits(shape.config["vocab_size"], CONTEXT_TOKENS, CONTEXT_TOKENS - 1, CONTEXT_TOKENS - 1)
    settings = WorkloadSettings(shape="uniform", prompt_tokens=work.prompt, output_tokens=work.output, seed=0)
    entries = islice(shape_entries(settings, limits), work.requests)
    return {
        "architecture": shape.architecture,
        "config": dict(shape.config),
        "requests": [{"prompt": list(e.prompt), "tokens": e.output_tokens} for e in entries],
    }


def _run(python: str, peer: str, model: str, work: Work, given: Path, device: str) -> ModelResult:
    command = [python, str(HERE / "peer.py"), peer, str(given), device]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=env)
    except subprocess.TimeoutExpired:
        return ModelResult(model, peer, error=f"it was not done after {LIMIT_S:g} s")
    if done.returncode:
        return ModelResult(model, peer, error=(done.stderr.strip().splitlines() or ["no message"])[-1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    load = f"concurrency {work.requests:g}"
    return ModelResult(model, peer, [Figures(work.name, load, found)])
