"""Models without weights, and the weights that are made for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.gpu import fill as filling
from benchmarks.gpu.fill import fill
from benchmarks.gpu.shapes import AGREEING, SHAPES, TOY
from benchmarks.gpu.skeleton import make_skeleton
from benchmarks.gpu.works import decode_limit
from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.export.widen import runnable
from llm_grpc.manifest import check_digests, load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.gpu.agreement import CONTEXT_TOKENS, agreement, generate, random_prompts

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy in each format, with its weights."""
    directories = {dtype: tmp_path_factory.mktemp("gpu") / dtype for dtype in DTYPES}
    for dtype, directory in directories.items():
        make_skeleton(TOY, directory, {"weights": dtype})
        assert not (directory / "model.onnx.data").exists()
        fill(directory)
    return directories


def weights(directory: Path) -> dict[str, np.ndarray]:
    graph = ir.load(directory / "model.onnx").graph
    plan = json.loads((directory / "weights.json").read_text())
    values = (graph.initializers[tensor["name"]] for tensor in plan["tensors"])
    return {str(v.name): v.const_value.numpy().astype(np.float32) for v in values if v.const_value}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_filled_skeleton_is_a_model_directory(models: dict[str, Path], dtype: str) -> None:
    manifest = load_manifest(models[dtype])
    check_digests(models[dtype], manifest)
    assert (manifest.name, manifest.weights) == ("toy", dtype)
    plan = json.loads((models[dtype] / "weights.json").read_text())["tensors"]
    assert {tensor["dtype"] for tensor in plan if len(tensor["shape"]) == 2} == {DTYPES[dtype].name}
    assert all(tensor["offset"] % 4096 == 0 for tensor in plan)


def test_it_runs(models: dict[str, Path]) -> None:
    for dtype, directory in models.items():
        with runnable(directory, load_manifest(directory)) as (path, manifest):
            runner = SlotRunner(path, manifest, 2, 64, threads=1)
            answers = generate(runner, [[3, 4, 5], [6]], 8, None)
        assert [len(answer) for answer in answers] == [8, 8], dtype


def test_every_format_has_the_same_numbers(models: dict[str, Path]) -> None:
    exact, half, brain = (weights(models[dtype]) for dtype in DTYPES)
    assert exact.keys() == half.keys() == brain.keys()
    for name, values in exact.items():
        assert np.array_equal(values, brain[name]), name
        assert np.allclose(values, half[name], rtol=0, atol=2.0**-24), name


def test_weights_are_as_large_as_they_should_be(models: dict[str, Path]) -> None:
    for name, values in weights(models["fp32"]).items():
        if "norm" in name:
            assert (values == 1).all(), name
        elif "embed" in name:
            assert values.std() == pytest.approx(0.02, rel=0.1)
        elif values.ndim == 2:
            assert 0.05 < values.std() < 0.2, name
            assert abs(values.mean()) < 0.01


def test_weights_differ_from_each_other(models: dict[str, Path]) -> None:
    drawn = [values for values in weights(models["fp32"]).values() if values.ndim == 2]
    assert len({values.tobytes() for values in drawn}) == len(drawn)


def test_a_weight_larger_than_the_pool_repeats_blocks_and_not_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filling, "_normal", lambda: np.arange(32, dtype=np.float32).reshape(8, 4))
    monkeypatch.setattr(filling, "BLOCK_VALUES", 4)
    filling._pool.cache_clear()
    parts = [*filling._parts({"shape": [5, 11], "dtype": "FLOAT", "deviation": 1.0, "seed": 7})]
    filling._pool.cache_clear()
    assert [len(part) for part in parts] == [4] * 13 + [3]
    assert {tuple(part[:1] % 4) for part in parts} == {(0.0,)}
    assert len({part[0] for part in parts}) > 3


def test_the_limit_of_decoding_leaves_out_what_is_looked_up(models: dict[str, Path]) -> None:
    found = weights(models["fp32"])
    embedding = next(values for name, values in found.items() if "embed" in name)
    read = sum(values.nbytes for values in found.values()) - embedding.nbytes
    assert decode_limit(models["fp32"], 1e9) == pytest.approx(1e9 / read)


def test_the_shapes_are_all_groups_of_both_widths() -> None:
    found = {
        (s.config["head_dim"], s.config["num_attention_heads"] // s.config["num_key_value_heads"])
        for s in AGREEING
    }
    assert found == {(head_dim, group) for head_dim in (64, 128) for group in (1, 2, 4, 8)}
    assert len(SHAPES) == len(AGREEING) + 3


def test_a_model_agrees_with_itself_and_not_with_another() -> None:
    manifest = load_manifest(EMBEDDED_MODEL)
    runner = SlotRunner(EMBEDDED_MODEL, manifest, 3, CONTEXT_TOKENS, threads=1)
    prompts = random_prompts(3, manifest.vocabulary_size, most=60)
    answers = generate(runner, prompts, 12, None)
    found = agreement(runner, prompts, answers)
    assert (found.tokens, found.equal) == (36, 36)
    assert found.gap == 0
    wrong = [[(token + 1) % manifest.vocabulary_size for token in answer] for answer in answers]
    assert agreement(runner, prompts, wrong).gap > 0.1


def test_a_skeleton_travels(models: dict[str, Path], tmp_path: Path) -> None:
    """Without its data it is small, and what is filled elsewhere is the same."""
    copy = Path(shutil.copytree(models["bf16"], tmp_path / "copy", ignore=shutil.ignore_patterns("*.data")))
    fill(copy)
    assert (copy / "manifest.json").read_bytes() == (models["bf16"] / "manifest.json").read_bytes()
