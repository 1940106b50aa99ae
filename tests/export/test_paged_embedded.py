"""The embedded model for GPUs, as shipped and as exported again, says what its checkpoint says over slots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from llm_grpc.cli.self_test import known_answer
from llm_grpc.config import EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL
from llm_grpc.engine.step_plan import BlockGrant, DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.export.verify_drive import prefill
from llm_grpc.manifest import check_digests, load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.sampling_params import SamplingParams
from tests.export.paged_models import Paged, exported, in_fp32

REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = REPOSITORY / "models" / "embedded" / "checkpoint"
TOKENIZER = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
DEMO = json.loads((REPOSITORY / "llm_grpc" / "cli" / "demo.json").read_text())
PROMPTS = [TOKENIZER.encode(item["prompt"]).ids for item in DEMO]
NUM_TOKENS, CHUNK_TOKENS, CONTEXT = 24, 20, 256
GREEDY = SamplingParams(max_tokens=NUM_TOKENS)

LEAST_MARGIN = 0.01
"""Of the largest logit."""


@pytest.fixture(scope="module", params=["shipped", "exported again"])
def paged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    directory = tmp_path_factory.mktemp("blocks") / "model"
    if request.param == "shipped":
        shutil.copytree(EMBEDDED_PAGED_MODEL, directory)
    else:
        exported(CHECKPOINT, directory, "paged")
    with in_fp32(directory) as (wide, manifest):
        yield Paged.of(wide, manifest, max_running=len(PROMPTS), context_tokens=CONTEXT)


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlotRunner]:
    directory = exported(CHECKPOINT, tmp_path_factory.mktemp("slots") / "model", "slots")
    with in_fp32(directory) as (wide, manifest):
        yield SlotRunner(wide, manifest, 1, CONTEXT, threads=1)


def alone(slots: SlotRunner, prompt: list[int]) -> list[int]:
    """Greedy tokens over slots."""
    tokens = [int(prefill(slots, prompt)[-1].argmax())]
    while len(tokens) < NUM_TOKENS:
        row = DecodeRow(0, tokens[-1], len(prompt) + len(tokens) - 1)
        tokens += slots.run(StepPlan((row,), (), (Sample(0, 0, len(tokens), GREEDY),))).tokens
    return tokens


def together(paged: Paged) -> list[list[int]]:
    """Greedy tokens over blocks: two prompts are prefilled at a time, beside all that decode."""
    said: list[list[int]] = [[] for _ in PROMPTS]
    done = [0] * len(PROMPTS)
    while any(len(tokens) < NUM_TOKENS for tokens in said):
        decoding = [i for i, tokens in enumerate(said) if 0 < len(tokens) < NUM_TOKENS]
        rows = [DecodeRow(i, said[i][-1], len(PROMPTS[i]) + len(said[i]) - 1) for i in decoding]
        filling = [i for i, prompt in enumerate(PROMPTS) if done[i] < len(prompt)][:2]
        chunks = [PrefillChunk(i, done[i], PROMPTS[i][done[i] : done[i] + CHUNK_TOKENS]) for i in filling]
        grants: tuple[BlockGrant, ...] = ()
        samples, end = [Sample(i, at, 0, GREEDY) for at, i in enumerate(decoding)], len(rows)
        for row in rows:
            grants += paged.grants(row.slot, row.position + 1)
        for chunk in chunks:
            end += len(chunk.tokens)
            done[chunk.slot] += len(chunk.tokens)
            grants += paged.grants(chunk.slot, done[chunk.slot])
            if done[chunk.slot] == len(PROMPTS[chunk.slot]):
                samples.append(Sample(chunk.slot, end - 1, 0, GREEDY))
        found = paged.runner.run(StepPlan(tuple(rows), tuple(chunks), tuple(samples), grants=grants)).tokens
        for sample, token in zip(samples, found, strict=True):
            said[sample.request_id].append(token)
    return said


def test_the_demo_over_blocks_is_the_demo_over_slots(paged: Paged, slots: SlotRunner) -> None:
    assert together(paged) == [alone(slots, prompt) for prompt in PROMPTS]


def test_the_doctor_s_answer_is_far_from_any_other(paged: Paged) -> None:
    """Rounding of a GPU's kernels does not change it."""
    prompt, answer = known_answer()
    logits = paged.step(chunks=[PrefillChunk(0, 0, [*prompt, *answer[:-1]])])[len(prompt) - 1 :]
    best = np.sort(logits, axis=-1)[:, -2:]
    assert logits.argmax(axis=-1).tolist() == answer
    assert (best[:, 1] - best[:, 0]).min() > LEAST_MARGIN * np.abs(logits).max()


def test_the_shipped_models_differ_in_lowering_and_format_alone() -> None:
    slots, paged = load_manifest(EMBEDDED_MODEL), load_manifest(EMBEDDED_PAGED_MODEL)
    check_digests(EMBEDDED_PAGED_MODEL, paged)
    assert (paged.lowering, paged.weights, paged.kv_cache.dtype) == ("paged", "fp16", "float16")
    same = {"name", "architecture", "vocabulary_size", "context_tokens", "eos_token_ids", "tokenizer"}
    assert paged.model_dump(include=same) == slots.model_dump(include=same)
    for name in (slots.tokenizer, str(slots.chat_template)):
        assert (EMBEDDED_PAGED_MODEL / name).read_bytes() == (EMBEDDED_MODEL / name).read_bytes()


def test_logits_agree_to_the_rounding_of_fp32(paged: Paged, slots: SlotRunner) -> None:
    tokens = (PROMPTS[0] * 20)[:150]
    found = paged.step(chunks=[PrefillChunk(0, 0, tokens)])
    wanted = prefill(slots, tokens)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
