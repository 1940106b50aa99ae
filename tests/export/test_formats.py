"""Weights in int8 and int4: what a batch computes, how large it is, and what calibration chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.torch import load_file, save_file

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk
from llm_grpc.errors import ExportError
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe, Weights
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.export.verify_drive import run_all_rows
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.export.random_model import save_random_model
from tests.export.threefold import ids

ANY = VerifyOptions(num_tokens=4, allow_inexact=True)
ARCHITECTURES = ("llama", "gpt2", "mixtral", "gemma2")
LOUD = 200


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(bytes(b % 94 + 32 for b in ids(11, 4000)))
    return path


def exported(source: Path, target: Path, weights: Weights, calibrate: Path | None = None) -> Path:
    export(str(source), target, "model", ANY, Recipe(weights, calibrate))
    return target


def runner(model_dir: Path) -> SlotRunner:
    return SlotRunner(model_dir, load_manifest(model_dir), num_slots=4, context_tokens=128, threads=1)


def counted(model_dir: Path) -> dict[str, int]:
    nodes = [node.op_type for node in onnx.load(model_dir / "model.onnx").graph.node]
    return {name: nodes.count(name) for name in set(nodes)}


@pytest.fixture(scope="module")
def int8_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("int8") / "model", "int8")


def outlier_checkpoint(directory: Path) -> Path:
    """A model in which one token has a feature far larger than all others."""
    save_random_model(directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][LOUD, 3] = 1000.0
    save_file(tensors, path, {"format": "pt"})
    return directory


def test_an_int8_row_is_the_same_beside_an_outlier(tmp_path: Path) -> None:
    """The linear layers round each row by itself: the decode row's bits do not depend on its neighbours."""
    model = runner(exported(outlier_checkpoint(tmp_path / "loud"), tmp_path / "model", "int8"))
    quiet, loud = [5, 6, 7, 8, 9], [LOUD] * 5
    for slot, tokens in enumerate((quiet, loud)):
        run_all_rows(model, [], PrefillChunk(slot, 0, tokens))
    row = DecodeRow(0, 10, 5)
    alone = run_all_rows(model, [row], None)[0]
    beside_decode = run_all_rows(model, [row, DecodeRow(1, LOUD, 5)], None)[0]
    beside_chunk = run_all_rows(model, [row], PrefillChunk(2, 0, loud))[0]
    assert np.array_equal(alone, beside_decode)
    assert np.array_equal(alone, beside_chunk)
    other = run_all_rows(model, [DecodeRow(0, 11, 5)], None)[0]
    assert not np.array_equal(alone, other)


def test_int8_is_a_quarter_and_int4_less(
    int8_dir: Path, model_dir: Path, checkpoint: Path, tmp_path: Path
) -> None:
    whole = (model_dir / "model.onnx").stat().st_size
    int4 = exported(checkpoint, tmp_path / "int4", "int4")
    assert load_manifest(int8_dir).weights == "int8"
    assert (int8_dir / "model.onnx").stat().st_size < 0.5 * whole  # the graph itself is a third of this one
    assert not [t for t in onnx.load(int8_dir / "model.onnx").graph.initializer if _is_wide(t)]
    assert not [t for t in onnx.load(int4 / "model.onnx").graph.initializer if _is_wide(t)]
    assert counted(int8_dir)["MatMulIntegerToFloat"] == 3 * 5 + 1
    assert counted(int4)["MatMulNBits"] == 3 * 5 + 1


def test_a_layer_has_few_nodes(model_dir: Path, int8_dir: Path, tmp_path: Path) -> None:
    """After ONNX Runtime's own optimisation, all of a step's nodes counted for the three layers."""
    found = {name: _nodes(path, tmp_path) / 3 for name, path in (("fp32", model_dir), ("int8", int8_dir))}
    assert found["fp32"] <= 19
    assert found["int8"] <= 49


def _nodes(model_dir: Path, scratch: Path) -> int:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model_dir / "model.onnx", options, providers=["CPUExecutionProvider"])
    return len(onnx.load(scratch / "optimised.onnx").graph.node)


def _is_wide(tensor: onnx.TensorProto) -> bool:
    """A matrix in fp32; the scales of blocks are one for every 32 weights."""
    return tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2 and min(tensor.dims) > 8


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_formats_hold_for_other_architectures(
    architecture: str, weights: Weights, text: Path, tmp_path: Path
) -> None:
    """Mixtures keep the matrix that ranks experts; biases, offsets of norms and tied heads are in place."""
    source = save_random_model(tmp_path / "source", architecture)
    wanted = runner(exported(source, tmp_path / "fp32", "fp32"))
    found = runner(exported(source, tmp_path / weights, weights, text))
    tokens = ids(3, 40)
    a, b = (run_all_rows(model, [], PrefillChunk(0, 0, tokens)) for model in (wanted, found))
    error = float(np.sqrt(np.square(a - b).mean() / np.square(a).mean()))
    assert error < {"int8": 0.1, "int4": 0.3}[weights]
    names = [t.name for t in onnx.load(tmp_path / weights / "model.onnx").graph.initializer]
    assert [name for name in names if ".gate.weight" in name] == (
        [f"model.layers.{i}.block_sparse_moe.gate.weight.transpose" for i in range(3)]
        if architecture == "mixtral"
        else []
    )


def test_calibration_lowers_the_error(checkpoint: Path, text: Path, model_dir: Path, tmp_path: Path) -> None:
    wanted = runner(model_dir)
    tokens = ids(3, 60)
    reference = run_all_rows(wanted, [], PrefillChunk(0, 0, tokens))
    errors = {}
    for calibrate in (None, text):
        model = runner(exported(checkpoint, tmp_path / f"{calibrate is None}", "int4", calibrate))
        found = run_all_rows(model, [], PrefillChunk(0, 0, tokens))
        errors[calibrate] = float(np.square(found - reference).mean())
    assert errors[text] < 0.8 * errors[None]


def test_settings_that_do_not_go_together(text: Path) -> None:
    with pytest.raises(ExportError, match=r"--mean-bits is 4, and the limits are 5\.125 and 8\.25"):
        Recipe("int4", text, 4)
    with pytest.raises(ExportError, match="--weights is fp32"):
        Recipe("fp32", text)
    with pytest.raises(ExportError, match="--dtype is fp16, and weights in int8 can"):
        Recipe("int8", dtype="fp16")
    for weights in ("fp32", "int8", "int4"):
        with pytest.raises(ExportError, match=f"--lowering paged is for NVIDIA GPUs .* --weights {weights} "):
            Recipe(weights, lowering="paged")
    with pytest.raises(ExportError, match="--kv-cache int8 is for CPUs"):
        Recipe("fp16", text, kv_cache="int8", lowering="paged")


def test_int4_for_a_gpu_computes_in_16_bits(checkpoint: Path, tmp_path: Path) -> None:
    export(str(checkpoint), tmp_path / "model", "model", ANY, Recipe("int4", dtype="fp16"))
    manifest = load_manifest(tmp_path / "model")
    assert (manifest.weights, manifest.kv_cache.dtype) == ("int4", "float16")
    graph = onnx.load(tmp_path / "model" / "model.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    scales = [types[node.input[2]] for node in graph.node if node.op_type == "MatMulNBits"]
    assert scales == [onnx.TensorProto.FLOAT16] * (3 * 5 + 1)
