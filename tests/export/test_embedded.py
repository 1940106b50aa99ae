"""The shipped model is what its checkpoint exports to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llm_grpc.config import EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.export.command import export
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.sampling_params import SamplingParams
from tests.export.random_model import Eager

REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = REPOSITORY / "models" / "embedded" / "checkpoint"
PROMPTS = [item["prompt"] for item in json.loads((REPOSITORY / "llm_grpc" / "cli" / "demo.json").read_text())]
NUM_TOKENS = 24
LIMITS_BYTES = {EMBEDDED_MODEL: 8_000_000, EMBEDDED_PAGED_MODEL: 4_000_000}


@pytest.fixture(scope="module")
def exported_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("again") / "embedded"
    export(str(CHECKPOINT), directory, "embedded")
    return directory


def greedy(model_dir: Path, ids: list[int]) -> list[int]:
    """The served model's next tokens, whatever they are."""
    runner = SlotRunner(model_dir, load_manifest(model_dir), num_slots=1, context_tokens=256, threads=1)
    params = SamplingParams(max_tokens=NUM_TOKENS)
    chunk = PrefillChunk(0, 0, ids)
    tokens = list(runner.run(StepPlan((), (chunk,), (Sample(0, len(ids) - 1, 0, params),))).tokens)
    for index in range(1, NUM_TOKENS):
        row = DecodeRow(0, tokens[-1], len(ids) + index - 1)
        tokens += runner.run(StepPlan((row,), (), (Sample(0, 0, index, params),))).tokens
    return tokens


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_export_is_repeatable_and_equals_torch(exported_again: Path, prompt: str) -> None:
    ids = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json")).encode(prompt).ids
    shipped = greedy(EMBEDDED_MODEL, ids)
    assert greedy(exported_again, ids) == shipped
    assert Eager(CHECKPOINT).greedy(ids, NUM_TOKENS) == shipped


def test_a_raw_prompt_is_a_chat_of_one_turn() -> None:
    served = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        assert tokenizer.apply_chat_template(chat, add_generation_prompt=True) == served.encode(prompt).ids


@pytest.mark.parametrize("model", LIMITS_BYTES)
def test_the_model_is_small(model: Path) -> None:
    assert sum(path.stat().st_size for path in model.iterdir()) <= LIMITS_BYTES[model]
