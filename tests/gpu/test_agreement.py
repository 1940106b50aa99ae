"""What a GPU computes is what a CPU does, but for rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.shapes import AGREEING
from llm_grpc.cli import demo
from llm_grpc.config import EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.gpus import Gpu
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.text.tokenizer import TextTokenizer
from tests.gpu.agreement import CONTEXT_TOKENS, agreement, generate, load, random_prompts
from tests.gpu.conftest import ready

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(330)]

MOST_GAP = {"fp16": 0.01, "bf16": 0.06}
"""Of a token that is not the best: rounding to 11 and to 8 bits, through four layers."""

LEAST_EQUAL = 0.9

DEMO = Path(demo.__file__).with_name("demo.json")


@pytest.mark.parametrize("dtype", MOST_GAP)
@pytest.mark.parametrize("shape", [shape.name for shape in AGREEING])
def test_greedy_tokens_agree(gpu: Gpu, skeletons: Path, filled: list[Path], shape: str, dtype: str) -> None:
    exact = ready(skeletons / "fp32" / shape, filled)
    half = ready(skeletons / dtype / shape, filled)
    reference = SlotRunner(exact, load_manifest(exact), 1, CONTEXT_TOKENS)
    manifest = load_manifest(half)
    prompts = random_prompts(8, manifest.vocabulary_size)
    answers = generate(load(half, "cuda", len(prompts)), prompts, 48, manifest.block_size)
    found = agreement(reference, prompts, answers)
    assert found.gap <= MOST_GAP[dtype]
    assert found.equal >= LEAST_EQUAL * found.tokens


def test_the_embedded_model_agrees(gpu: Gpu) -> None:
    """The one for GPUs with the one for CPUs, whose weights are not rounded."""
    slots, paged = load_manifest(EMBEDDED_MODEL), load_manifest(EMBEDDED_PAGED_MODEL)
    reference = SlotRunner(EMBEDDED_MODEL, slots, 1, CONTEXT_TOKENS)
    tokenizer = TextTokenizer(EMBEDDED_MODEL / slots.tokenizer, CONTEXT_TOKENS)
    prompts = [tokenizer.raw.encode(item["prompt"]).ids for item in json.loads(DEMO.read_text())]
    runner = load(EMBEDDED_PAGED_MODEL, "cuda", len(prompts))
    found = agreement(reference, prompts, generate(runner, prompts, 48, paged.block_size))
    assert found.gap <= MOST_GAP["fp16"]
    assert found.equal >= LEAST_EQUAL * found.tokens


def test_they_agree_with_the_attention_of_cudnn_too(gpu: Gpu) -> None:
    """Which attention runs is read once in a process."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-k",
            test_greedy_tokens_agree.__name__,
            __file__,
        ],
        env=os.environ | {"ORT_ENABLE_CUDNN_FLASH_ATTENTION": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
