"""The embedded model does what its card says, through gRPC and on items it never saw."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.process import ServerProcess

REPOSITORY = Path(__file__).parents[2]
CARD = REPOSITORY / "models" / "embedded"
TASKS = ("translate", "summarise", "answer", "dialogue", "moderate", "code")
MIN_ACCURACY = 0.97
TOLERANCE = 0.005
"""A greedy choice between two close logits may fall otherwise on another CPU."""

MOST_LOST = {"int8": 0.005, "int8_calibrated": 0.005, "int4": 0.02, "int4_calibrated": 0.02}
"""What a format may lose against fp32, in each task and in the mean."""


@pytest.fixture(scope="module")
def measuring() -> Iterator[Any]:
    """models/embedded/measure.py, a script beside its model and no part of the package."""
    sys.path.insert(0, str(CARD))
    measure = importlib.import_module("measure")

    yield measure
    sys.path.remove(str(CARD))


@pytest.fixture(scope="module")
def stated() -> Any:
    return json.loads((CARD / "accuracy.json").read_text())


@pytest.mark.parametrize("task", TASKS)
async def test_held_out_items(embedded: ServerProcess, measuring: Any, stated: Any, task: str) -> None:
    found = await measuring.accuracy(embedded.address, measuring.sample(task, "held_out"))
    assert found >= MIN_ACCURACY
    assert found == pytest.approx(stated["held_out"][task], abs=TOLERANCE)


def test_the_card_states_the_measured_numbers(stated: Any) -> None:
    card = (CARD / "README.md").read_text()
    for task in TASKS:
        numbers = f"{stated['held_out'][task]:.1%} | {stated['unseen_phrasing'][task]:.1%}"
        assert re.search(rf"^\| {task} .*\| {re.escape(numbers)} \|$", card, re.MULTILINE), (
            f"{task}: {numbers}"
        )


def test_a_format_keeps_the_accuracy(stated: Any) -> None:
    formats = {name: with_mean(found["held_out"]) for name, found in stated["formats"].items()}
    assert formats.keys() == {"fp32", *MOST_LOST}
    for name, limit in MOST_LOST.items():
        lost = {task: formats["fp32"][task] - formats[name][task] for task in (*TASKS, "mean")}
        assert {task: by for task, by in lost.items() if by > limit + 1e-9} == {}, name


def with_mean(shares: dict[str, float]) -> dict[str, float]:
    return {**shares, "mean": sum(shares.values()) / len(shares)}


def test_the_card_states_the_numbers_of_the_formats(stated: Any) -> None:
    card = (CARD / "README.md").read_text()
    assert stated["formats"]["fp32"]["held_out"] == stated["held_out"]
    for name, found in stated["formats"].items():
        shares = with_mean(found["held_out"])
        numbers = [f"{found['model_bytes'] / 1e6:.2f} MB", *(f"{shares[task]:.1%}" for task in TASKS)]
        row = " | ".join([name.replace("_", ", "), *numbers, f"{shares['mean']:.2%}"])
        assert f"\n| {row} |\n" in card, row


async def test_the_demo_is_held_out_and_right(embedded: ServerProcess, measuring: Any) -> None:
    tasks = importlib.import_module("tasks")

    demo = json.loads((REPOSITORY / "llm_grpc" / "cli" / "demo.json").read_text())
    assert demo == [{"task": item.task, "prompt": item.prompt} for item in tasks.DEMO]
    assert {item["task"] for item in demo} == set(TASKS)
    assert all(tasks.is_held_out(item.task, item.content) for item in tasks.DEMO)
    assert await measuring.accuracy(embedded.address, list(tasks.DEMO)) == 1.0
