"""Is an exported step what eager torch computes, whole, in chunks, and ragged beside a chunk?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk
from llm_grpc.errors import ExportError
from llm_grpc.export.command import export
from llm_grpc.export.verify_drive import run_all_rows
from llm_grpc.manifest import Manifest, load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.export.families import Family
from tests.export.random_model import Eager, save_random_model

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit."""
GREEDY_TOKENS = 64

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """What was found for one family; a refused one has a reason and no numbers."""

    family: Family
    refusal: str = ""
    error: float = 0.0
    """The largest difference of a logit that was seen, relative to the largest logit."""
    num_ties: int = 0
    """Greedy tokens that differ where eager's best two are closer than the tolerance."""
    nodes_per_layer: float = 0.0

    @property
    def result(self) -> str:
        """The verdict, without digits that differ between machines."""
        return self.refusal or "exact"


def check(family: Family, directory: Path) -> Row:
    """Export the family with random weights and compare it with torch; AssertionError where they differ."""
    checkpoint = save_random_model(directory / "checkpoint", family.model_type, **family.config)

    try:
        export(str(checkpoint), directory / "model", "family")
    except ExportError as error:
        return Row(family, refusal=f"refused: {error}")
    model_dir, eager = directory / "model", Eager(checkpoint)
    manifest = load_manifest(model_dir)
    runner = SlotRunner(model_dir, manifest, num_slots=4, context_tokens=128, threads=1)
    errors = [*_whole(runner, eager), *_in_chunks(runner, eager), *_ragged(runner, eager)]
    num_ties = _greedy(runner, eager)
    assert max(errors) <= TOLERANCE, errors
    return Row(family, "", max(errors), num_ties, _nodes(model_dir, manifest) / manifest.kv_cache.num_layers)


def ids(seed: int, count: int) -> list[int]:
    """Random tokens of the byte vocabulary."""
    return random.Random(seed).choices(range(256), k=count)


def _error(found: Logits, wanted: Logits) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _whole(runner: SlotRunner, eager: Eager) -> list[float]:
    tokens = ids(1, 60)
    return [_error(run_all_rows(runner, [], PrefillChunk(0, 0, tokens)), eager.logits(tokens))]


def _in_chunks(runner: SlotRunner, eager: Eager) -> list[float]:
    tokens, errors = ids(2, 60), []
    wanted = eager.logits(tokens)
    for size in (1, 7, 59):
        parts = [
            run_all_rows(runner, [], PrefillChunk(2, at, tokens[at : at + size])) for at in range(0, 60, size)
        ]
        errors.append(_error(np.concatenate(parts), wanted))
    return errors


def _ragged(runner: SlotRunner, eager: Eager) -> list[float]:
    """Slots 0 and 3 decode at lengths 30 and 5, slot 2 is idle, slot 1 is prefilled beside them."""
    first, second, third = ids(3, 40), ids(4, 15), ids(5, 30)
    run_all_rows(runner, [], PrefillChunk(0, 0, first[:29]))
    run_all_rows(runner, [DecodeRow(0, first[29], 29)], PrefillChunk(3, 0, second[:5]))
    steps = [
        run_all_rows(
            runner,
            [DecodeRow(0, first[30 + step], 30 + step), DecodeRow(3, second[5 + step], 5 + step)],
            PrefillChunk(1, step * 3, third[step * 3 : step * 3 + 3]),
        )
        for step in range(10)
    ]
    return [
        _error(np.stack([logits[0] for logits in steps]), eager.logits(first)[30:]),
        _error(np.stack([logits[1] for logits in steps]), eager.logits(second)[5:]),
        _error(np.concatenate([logits[2:] for logits in steps]), eager.logits(third)),
    ]


def _greedy(runner: SlotRunner, eager: Eager) -> int:
    """Follow our own best token; at each step eager's best must be the same one, but for ties."""
    prompt = ids(6, 20)
    tokens = [*prompt, int(run_all_rows(runner, [], PrefillChunk(0, 0, prompt))[-1].argmax())]
    while len(tokens) < len(prompt) + GREEDY_TOKENS:
        row = DecodeRow(0, tokens[-1], len(tokens) - 1)
        tokens.append(int(run_all_rows(runner, [row], None)[0].argmax()))
    wanted, num_ties = eager.logits(tokens)[len(prompt) - 1 : -1], 0
    for token, logits in zip(tokens[len(prompt) :], wanted, strict=True):
        if token != logits.argmax():
            assert logits.max() - logits[token] <= TOLERANCE * np.abs(logits).max(), (token, logits.argmax())
            num_ties += 1
    return num_ties


def _nodes(model_dir: Path, manifest: Manifest) -> int:
    """Nodes that ONNX Runtime runs, after its own optimisation."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(model_dir / "optimised.onnx")
    ort.InferenceSession(str(model_dir / manifest.graph), options, providers=["CPUExecutionProvider"])
    return len(onnx.load(model_dir / "optimised.onnx", load_external_data=False).graph.node)
