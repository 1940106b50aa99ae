"""How far one runner's greedy tokens are from the best ones of another runner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_grpc.config import EngineConfig, ModelConfig
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.step_plan import BlockGrant, DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.export.verify_drive import prefill
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.server.runners import runner_for

GREEDY = SamplingParams(max_tokens=1)
CONTEXT_TOKENS = 512


class Agreement(NamedTuple):
    """``equal`` of ``tokens`` are the reference's best; the others' logits are at most ``gap`` below it,
    relative to the largest logit.
    """

    tokens: int
    equal: int
    gap: float


def load(model_dir: Path, device: str, num_slots: int) -> ModelRunner:
    """The runner that a server would have."""
    manifest = load_manifest(model_dir)
    num_blocks = num_slots * -(-CONTEXT_TOKENS // manifest.block_size) if manifest.block_size else 0
    engine = EngineConfig(device=device, max_running=num_slots, max_context_tokens=CONTEXT_TOKENS)
    return runner_for(ModelConfig(model=model_dir), engine, manifest, CONTEXT_TOKENS, num_blocks)


def generate(
    runner: ModelRunner, prompts: Sequence[list[int]], num_tokens: int, block_size: int | None
) -> list[list[int]]:
    """Greedy tokens after each prompt: prefilled one by one in slots 0 and on, decoded together.

    ``block_size`` is that of a paged cache, whose blocks are handed out slot by slot; None for slots.
    """
    found = []
    for slot, prompt in enumerate(prompts):
        sample = Sample(slot, len(prompt) - 1, 0, GREEDY)
        chunk = PrefillChunk(slot, 0, prompt)
        grants = (_grant(slot, len(prompt) + num_tokens, block_size),) if block_size else ()
        found.append([*runner.run(StepPlan((), (chunk,), (sample,), grants=grants)).tokens])
    for index in range(1, num_tokens):
        rows = tuple(
            DecodeRow(slot, tokens[-1], len(prompts[slot]) + index - 1) for slot, tokens in enumerate(found)
        )
        samples = tuple(Sample(slot, slot, index, GREEDY) for slot in range(len(rows)))
        for tokens, token in zip(found, runner.run(StepPlan(rows, (), samples)).tokens, strict=True):
            tokens.append(token)
    return found


def _grant(slot: int, num_tokens: int, block_size: int) -> BlockGrant:
    each = -(-CONTEXT_TOKENS // block_size)
    return BlockGrant(slot, 0, tuple(range(slot * each, slot * each + -(-num_tokens // block_size))))


def agreement(reference: SlotRunner, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Agreement:
    """Let ``reference`` compute the logits before each token of ``answers``, and compare with its best."""
    equal, gaps = 0, [0.0]
    for prompt, answer in zip(prompts, answers, strict=True):
        logits: NDArray[np.float32] = prefill(reference, [*prompt, *answer[:-1]])[len(prompt) - 1 :]
        best = logits.max(axis=-1)
        chosen = logits[np.arange(len(answer)), answer]
        equal += int((best == chosen).sum())
        gaps.append(float((best - chosen).max() / np.abs(logits).max()))
    return Agreement(sum(map(len, answers)), equal, max(gaps))


def random_prompts(count: int, vocabulary: int, most: int = 200) -> list[list[int]]:
    """Prompts of random ids and lengths, the same ones each time."""
    draw = np.random.default_rng(0)
    return [draw.integers(3, vocabulary, draw.integers(1, most + 1)).tolist() for _ in range(count)]
