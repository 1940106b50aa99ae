"""Measure the embedded model in every weight format: exported, served, asked the held-out items.

`python models/embedded/measure_formats.py` (needs the `export` extra, takes some minutes) writes the key
"formats" of accuracy.json beside this file; the model card's second table holds the same numbers.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from itertools import islice
from pathlib import Path

from measure import NUM_ITEMS, RESULT, SEED, accuracy, sample
from tasks import TASKS, items
from tokenizers import Tokenizer

from llm_grpc.cli.child_server import child_server, serve_command
from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe, Weights

CHECKPOINT = Path(__file__).with_name("checkpoint")
START_LIMIT_S = 60.0
CALIBRATION_TOKENS = 20_000

FORMATS: tuple[tuple[Weights, bool], ...] = (("int8", False), ("int8", True), ("int4", False), ("int4", True))
"""Weights, and whether a text calibrates them."""


def calibration_text() -> str:
    """Items of the training split, a task after the other, in the tokenizer's own format."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    streams = [items(task, "train", SEED) for task in TASKS]
    turns, count = [], 0
    while count < CALIBRATION_TOKENS:
        for item in (next(stream) for stream in streams):
            turns.append(f"<|user|>{item.prompt}<|assistant|>{item.answer}<|eos|>")
            count += len(tokenizer.encode(turns[-1], add_special_tokens=False).ids)
    return "".join(turns)


def label(weights: str, calibrated: bool) -> str:
    """A format's key in accuracy.json."""
    return f"{weights}_calibrated" if calibrated else weights


def export_format(directory: Path, weights: Weights, calibrated: bool) -> Path:
    """Export the checkpoint to a folder of `directory`."""
    text, model = directory / "calibration.txt", directory / label(weights, calibrated)
    text.write_text(calibration_text(), encoding="utf-8")
    export(str(CHECKPOINT), model, "embedded", recipe=Recipe(weights, text if calibrated else None))
    return model


def measure_model(model: Path, num_items: int = NUM_ITEMS) -> dict[str, float]:
    """Serve a model directory; its accuracy in every task, on the first `num_items` held-out items."""
    with child_server(START_LIMIT_S, serve_command(("--model", str(model)))) as (address, _):
        chosen = {task: list(islice(sample(task, "held_out"), num_items)) for task in TASKS}
        return {task: asyncio.run(accuracy(address, measured)) for task, measured in chosen.items()}


def described(model: Path) -> dict[str, object]:
    """What accuracy.json says of a format."""
    return {"model_bytes": (model / "model.onnx").stat().st_size, "held_out": measure_model(model)}


def measure_formats() -> dict[str, object]:
    """fp32 is the model that ships; the others are exported here."""
    found = {"fp32": described(EMBEDDED_MODEL)}
    with tempfile.TemporaryDirectory() as scratch:
        for weights, calibrated in FORMATS:
            model = export_format(Path(scratch), weights, calibrated)
            found[label(weights, calibrated)] = described(model)
            print(label(weights, calibrated), found[label(weights, calibrated)], flush=True)
    return found


if __name__ == "__main__":
    known = json.loads(RESULT.read_text())
    RESULT.write_text(json.dumps({**known, "formats": measure_formats()}, indent=2) + "\n")
