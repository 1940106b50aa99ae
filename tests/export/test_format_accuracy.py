"""What int8 and int4 cost the embedded model: measured as for its card, on fewer items."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_grpc.config import EMBEDDED_MODEL

CARD = Path(__file__).parents[2] / "models" / "embedded"
NUM_ITEMS = 200

TASK_NOISE, MEAN_NOISE = 0.015, 0.006
"""Two standard deviations of a difference, where one item in a hundred is right in one format alone: one is
0.7 points over 200 items, and 0.29 over the 1,200 of six tasks."""

Shares = dict[str, float]


@pytest.fixture(scope="module")
def measuring() -> Iterator[Any]:
    """models/embedded/measure_formats.py, a script beside its model and no part of the package."""
    sys.path.insert(0, str(CARD))
    yield importlib.import_module("measure_formats")
    sys.path.remove(str(CARD))


@pytest.fixture(scope="module")
def in_fp32(measuring: Any) -> Shares:
    found: Shares = measuring.measure_model(EMBEDDED_MODEL, NUM_ITEMS)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("weights", "limit"), [("int8", 0.005), ("int4", 0.02)])
def test_a_calibrated_format_keeps_the_accuracy(
    measuring: Any, in_fp32: Shares, tmp_path: Path, weights: str, limit: float
) -> None:
    model = measuring.export_format(tmp_path, weights, calibrated=True)
    found = measuring.measure_model(model, NUM_ITEMS)
    lost = {task: in_fp32[task] - found[task] for task in in_fp32}
    assert max(lost.values()) <= limit + TASK_NOISE, lost
    assert sum(lost.values()) / len(lost) <= limit + MEAN_NOISE, lost


def test_the_calibration_text_is_of_training_items(measuring: Any) -> None:
    """No held-out content is in it, and it is long enough."""
    text = measuring.calibration_text()
    tasks = importlib.import_module("tasks")
    held_out = [item.prompt for task in tasks.TASKS for item in measuring.sample(task, "held_out")]
    assert not [prompt for prompt in held_out if f"<|user|>{prompt}<|assistant|>" in text]
    assert text.startswith("<|user|>")
    assert text.endswith("<|eos|>")
    assert len(text) > 2 * measuring.CALIBRATION_TOKENS
