"""Whether a device computes what it should."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from llm_grpc.config import EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL, EngineConfig, ModelConfig
from llm_grpc.devices import Device
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.step_plan import BlockGrant, DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.probe import product_error
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.server.runners import runner_for

GREEDY = SamplingParams(max_tokens=1)

MOST_ERROR = 2e-3
"""Of a product in float16, which rounds by 2**-11."""

CONTEXT_TOKENS = 128
"""Of which the prompt and the answer take a part: one block of a paged cache holds them."""


@dataclass(frozen=True)
class Outcome:
    """What came of one test; ``passed`` is None where it could not be run."""

    device: str
    test: str
    passed: bool | None
    detail: str


def known_answer() -> tuple[list[int], list[int]]:
    """A prompt for the embedded model and its greedy answer, as token ids."""
    text = resources.files("llm_grpc.cli").joinpath("doctor.json").read_text(encoding="utf-8")
    known: dict[str, list[int]] = json.loads(text)
    return known["prompt"], known["answer"]


def multiply(device: Device) -> Outcome:
    """A product of matrices."""

    def run() -> tuple[bool, str]:
        error = product_error(device)
        return error <= MOST_ERROR, f"a largest error of {error:.1e}, and {MOST_ERROR:.0e} is allowed"

    return _outcome(device, "product", run)


def answer(device: Device, model: Path) -> Outcome:
    """Generation with a model: the embedded one's answer is known, another one has to repeat its own."""

    def run() -> tuple[bool, str]:
        manifest, (prompt, known) = load_manifest(model), known_answer()
        engine = EngineConfig(device=str(device), max_running=1)
        # One block of a paged cache holds all; a slot is its own memory.
        grants = (BlockGrant(0, 0, (0,)),) if manifest.lowering == "paged" else ()
        runner = runner_for(ModelConfig(model=model), engine, manifest, CONTEXT_TOKENS, len(grants))
        started = time.perf_counter()
        found = generate(runner, prompt, len(known), grants)
        took_s = time.perf_counter() - started
        is_known = model in {EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL}
        wanted = known if is_known else generate(runner, prompt, len(known), grants)
        if found == wanted:
            return True, f"{manifest.name}: {len(found)} tokens in {took_s:.2f} s"
        return False, f"{manifest.name} answers {found}, and should answer {wanted}"

    return _outcome(device, "model", run)


def _outcome(device: Device, test: str, run: Callable[[], tuple[bool, str]]) -> Outcome:
    try:
        return Outcome(str(device), test, *run())
    except Exception as fault:  # noqa: BLE001 - onnxruntime raises its own classes straight under it
        return Outcome(str(device), test, False, str(fault).partition("\n")[0])


def generate(
    runner: ModelRunner, prompt: Sequence[int], num_tokens: int, grants: tuple[BlockGrant, ...] = ()
) -> list[int]:
    """The ``num_tokens`` most likely tokens after ``prompt``, in slot 0."""
    first = Sample(0, len(prompt) - 1, 0, GREEDY)
    tokens = [*runner.run(StepPlan((), (PrefillChunk(0, 0, prompt),), (first,), grants=grants)).tokens]
    while len(tokens) < num_tokens:
        row = DecodeRow(0, tokens[-1], len(prompt) + len(tokens) - 1)
        tokens += runner.run(StepPlan((row,), (), (Sample(0, 0, len(tokens), GREEDY),))).tokens
    return tokens
