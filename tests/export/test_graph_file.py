"""A graph with weights in a file of their own is the same graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llm_grpc.export.command import export
from llm_grpc.export.graph_file import write_graph
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.export.verify_drive import prefill
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner


def logits(model_dir: Path) -> np.ndarray:
    runner = SlotRunner(model_dir, load_manifest(model_dir), num_slots=1, context_tokens=64, threads=1)
    return prefill(runner, list(range(60)))


def test_external_weights_are_the_same_weights(model_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_dir, tmp_path / "model"))
    wanted = logits(copy)
    graph = copy / "model.onnx"
    write_graph(ir.load(graph), graph, external_from_bytes=0)
    assert graph.stat().st_size < (copy / "model.onnx.data").stat().st_size
    manifest = load_manifest(model_dir)
    runner = SlotRunner(copy, manifest, num_slots=1, context_tokens=64, threads=1)
    assert np.array_equal(prefill(runner, list(range(60))), wanted)


def test_what_optimum_writes_beside_the_graph_is_taken_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    export(str(checkpoint), tmp_path / "model", options=VerifyOptions(num_tokens=1))
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"manifest.json", "verification.json", "model.onnx", "tokenizer.json"}
    assert set(load_manifest(tmp_path / "model").files) == {"model.onnx", "tokenizer.json"}
