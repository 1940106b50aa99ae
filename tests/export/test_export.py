"""The exported step computes what eager torch computes, however the work is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk
from llm_grpc.errors import ExportError, ManifestError
from llm_grpc.export.command import export
from llm_grpc.export.verify_drive import run_all_rows
from llm_grpc.manifest import MANIFEST, load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.export.random_model import SHAPE, Eager
from tests.export.threefold import TOLERANCE, Logits, ids


@pytest.fixture(scope="module")
def eager(checkpoint: Path) -> Eager:
    return Eager(checkpoint)


@pytest.fixture
def runner(model_dir: Path) -> SlotRunner:
    return SlotRunner(model_dir, load_manifest(model_dir), num_slots=4, context_tokens=128, threads=1)


def assert_close(found: Logits, wanted: Logits) -> None:
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_whole_prefill(runner: SlotRunner, eager: Eager) -> None:
    tokens = ids(1, 60)
    assert_close(run_all_rows(runner, [], PrefillChunk(0, 0, tokens)), eager.logits(tokens))


@pytest.mark.parametrize("size", [1, 7, 16, 59])
def test_prefill_in_chunks_is_whole_prefill(runner: SlotRunner, eager: Eager, size: int) -> None:
    tokens = ids(2, 60)
    parts = [
        run_all_rows(runner, [], PrefillChunk(2, at, tokens[at : at + size])) for at in range(0, 60, size)
    ]
    assert_close(np.concatenate(parts), eager.logits(tokens))


def test_ragged_decode_beside_a_chunk_whatever_slots_are_idle(runner: SlotRunner, eager: Eager) -> None:
    """Slots 0 and 3 decode at lengths 30 and 5, slot 2 is idle, slot 1 is prefilled beside them."""
    first, second, third = ids(3, 40), ids(4, 15), ids(5, 33)
    run_all_rows(runner, [], PrefillChunk(0, 0, first[:29]))
    run_all_rows(runner, [DecodeRow(0, first[29], 29)], PrefillChunk(3, 0, second[:5]))
    found: list[Logits] = []
    for step in range(10):
        rows = [DecodeRow(0, first[30 + step], 30 + step), DecodeRow(3, second[5 + step], 5 + step)]
        chunk = PrefillChunk(1, step * 3, third[step * 3 : step * 3 + 3])
        found.append(run_all_rows(runner, rows, chunk))
    wanted = [eager.logits(tokens) for tokens in (first, second, third)]
    for step, logits in enumerate(found):
        assert_close(logits[0], wanted[0][30 + step])
        assert_close(logits[1], wanted[1][5 + step])
        assert_close(logits[2:], wanted[2][step * 3 : step * 3 + 3])


def test_a_slot_is_taken_again(runner: SlotRunner, eager: Eager) -> None:
    run_all_rows(runner, [], PrefillChunk(0, 0, ids(6, 100)))
    again = ids(7, 20)
    assert_close(run_all_rows(runner, [], PrefillChunk(0, 0, again)), eager.logits(again))


def test_the_last_position_of_the_context(runner: SlotRunner, eager: Eager) -> None:
    tokens = ids(8, 128)
    run_all_rows(runner, [], PrefillChunk(0, 0, tokens[:127]))
    assert_close(run_all_rows(runner, [DecodeRow(0, tokens[127], 127)], None)[0], eager.logits(tokens)[127])


def test_decode_binds_again_only_what_changes(runner: SlotRunner) -> None:
    run_all_rows(runner, [], PrefillChunk(0, 0, ids(9, 8)))
    run_all_rows(runner, [DecodeRow(0, 1, 8)], None)
    before = runner.num_binds
    for position in range(9, 30):
        run_all_rows(runner, [DecodeRow(0, 1, position)], None)
    assert runner.num_binds == before


def test_the_graph_holds_two_attention_nodes_a_layer_and_each_weight_once(model_dir: Path) -> None:
    graph = onnx.load(model_dir / "model.onnx").graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attention) == 2 * SHAPE["num_hidden_layers"]
    assert not [node for node in graph.node if node.op_type == "Softmax"]
    vocabulary = [list(t.dims) for t in graph.initializer if SHAPE["vocab_size"] in t.dims]
    assert len(vocabulary) == 1, "tied embeddings are stored once"


def test_a_manifest_that_does_not_fit_its_graph_is_refused(model_dir: Path) -> None:
    manifest = load_manifest(model_dir)
    for wrong in ({"num_layers": 2}, {"num_layers": 4}, {"num_heads": 4}, {"head_dim": 8}):
        kv_cache = manifest.kv_cache.model_copy(update=wrong)
        changed = manifest.model_copy(update={"kv_cache": kv_cache})
        with pytest.raises(ManifestError, match="export again"):
            SlotRunner(model_dir, changed, num_slots=1, context_tokens=16, threads=1)


def test_an_export_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot load"):
        export(str(tmp_path / "nothing"), tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_no_model_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not a model directory"):
        export(str(checkpoint), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_older_export_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / MANIFEST).write_text("{}")
    export(str(checkpoint), target)
    assert load_manifest(target).architecture == "llama"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
