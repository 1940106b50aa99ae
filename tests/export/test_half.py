"""A model in fp16 or bf16: its types, its weights, and what it computes over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
from safetensors.torch import load_file, save_file

from llm_grpc.cli.main import main
from llm_grpc.errors import ExportError, ManifestError
from llm_grpc.export.element_type import ELEMENT_TYPES
from llm_grpc.export.job import Job
from llm_grpc.export.passes.half import WITHOUT_BF16
from llm_grpc.export.passes.weights import array_of
from llm_grpc.export.progress import show_progress
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.source import find_source
from llm_grpc.export.stages import stages_of
from llm_grpc.export.verify import VerifyOptions, verify
from llm_grpc.export.verify_drive import prefill
from llm_grpc.export.widen import widened
from llm_grpc.manifest import check_digests, load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.export.cuda_kernels import load_kernels, without_kernel
from tests.export.families import FAMILIES
from tests.export.random_model import Eager, save_random_model, store_as
from tests.export.threefold import TOLERANCE, ids

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TYPES = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Exported:
    """A checkpoint and its export in ``dtype``."""

    checkpoint: Path
    model_dir: Path
    dtype: torch.dtype

    @property
    def graph(self) -> ir.Graph:
        """The graph as it was written."""
        return ir.load(self.model_dir / "model.onnx").graph


def export_as(checkpoint: Path, model_dir: Path, dtype: torch.dtype) -> Exported:
    model_dir.mkdir()
    recipe = Recipe(ELEMENT_TYPES[dtype].weights)
    job = Job(find_source(str(checkpoint)), "half", model_dir, recipe)
    stages = stages_of(recipe)
    with show_progress(len(stages)) as progress:
        for _, stage in stages:
            stage(job, progress)
    return Exported(checkpoint, model_dir, dtype)


@pytest.fixture(scope="module", params=[f for f in FAMILIES if f.quick], ids=lambda family: family.name)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("half") / "checkpoint"
    # The square root of 64 is exact in 16 bits, to which some models round it.
    config = {**request.param.config, "hidden_size": 64} if "gemma" in request.param.name else {}
    return save_random_model(directory, request.param.model_type, **{**request.param.config, **config})


@pytest.fixture(scope="module", params=TYPES, ids=str)
def exported(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    return export_as(source, tmp_path_factory.mktemp("half") / "model", request.param)


@pytest.fixture(scope="module")
def bf16_model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("bf16")
    return export_as(save_random_model(directory / "checkpoint"), directory / "model", torch.bfloat16)


def test_the_manifest_says_the_type_of_weights_and_cache(exported: Exported) -> None:
    manifest, element = load_manifest(exported.model_dir), ELEMENT_TYPES[exported.dtype]
    assert (manifest.weights, manifest.kv_cache.dtype) == (element.weights, element.name)
    caches = [value for value in exported.graph.inputs if str(value.name).startswith("past.")]
    assert {value.dtype for value in caches} == {TYPES[exported.dtype]}
    assert exported.graph.outputs[0].dtype == ir.DataType.FLOAT


def written(value: ir.Value) -> str:
    """A value's type as operator schemas write it."""
    assert value.type is not None, value.name
    name = value.type.dtype.name
    return f"tensor({name.lower()})"


def test_the_types_of_every_node_are_those_of_its_operator(exported: Exported) -> None:
    graph = exported.graph
    schemas = schemas_of(graph)
    for node in graph:
        check_types(node, schemas[node.domain, node.op_type])


def schemas_of(graph: ir.Graph) -> dict[tuple[str, str], object]:
    """The schema of each operator in the version that the graph asks for."""
    found: dict[tuple[str, str], object] = {}
    for schema in sorted(get_all_operator_schema(), key=lambda schema: schema.since_version):
        if schema.domain or schema.since_version <= graph.opset_imports[""]:
            found[schema.domain, schema.name] = schema
    return found


def check_types(node: ir.Node, schema: object) -> None:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}  # type: ignore[attr-defined]
    bound: dict[str, str] = {}
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):  # type: ignore[attr-defined]
        for place, value in enumerate(values):
            if value is None or not value.name:
                continue
            parameter, found = formal[min(place, len(formal) - 1)], written(value)
            name = parameter.typeStr
            assert found in allowed.get(name, {name}), (node.op_type, place, found)
            assert not parameter.isHomogeneous or bound.setdefault(name, found) == found, node.op_type


def test_no_operator_gets_bf16_that_has_no_kernel_for_it(exported: Exported) -> None:
    for node in exported.graph:
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        assert ir.DataType.BFLOAT16 not in types or node.op_type not in WITHOUT_BF16, node.op_type
        if node.op_type == "GroupQueryAttention":
            assert ir.DataType.FLOAT not in types


def test_every_node_has_a_kernel_on_gpus(exported: Exported) -> None:
    assert without_kernel(exported.model_dir / "model.onnx", load_kernels()) == []


def test_weights_are_rounded_to_the_nearest_once(exported: Exported) -> None:
    weights, exact = exported.graph.initializers, 0
    stored = load_file(exported.checkpoint / "model.safetensors")
    for name, tensor in stored.items():
        for key in (name, f"{name}.transpose"):
            value = weights.get(key)
            if value is None or value.dtype != TYPES[exported.dtype]:
                continue
            wanted = tensor.to(exported.dtype).view(torch.int16).numpy()
            found = array_of(value).view(np.int16)
            assert np.array_equal(found.T if key.endswith(".transpose") else found, wanted), name
            exact += 1
    assert exact >= 3 * 2


def test_in_fp32_it_computes_what_torch_does_over_the_rounded_weights(
    exported: Exported, tmp_path: Path
) -> None:
    model_dir, manifest = exported.model_dir, load_manifest(exported.model_dir)
    before = sorted(model_dir.iterdir())
    tokens = ids(1, 100)
    with widened(model_dir, manifest) as (directory, wide):
        assert (wide.weights, wide.kv_cache.dtype) == ("fp32", "float32")
        found = prefill(SlotRunner(directory, wide, 1, 128, threads=1), tokens)
    assert sorted(model_dir.iterdir()) == before
    wanted = Eager(rounded(exported, tmp_path / "rounded")).logits(tokens)
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def rounded(exported: Exported, directory: Path) -> Path:
    """The checkpoint with its weights rounded and stored in fp32."""
    for path in exported.checkpoint.glob("*.json"):
        directory.mkdir(exist_ok=True)
        (directory / path.name).write_bytes(path.read_bytes())
    stored = load_file(exported.checkpoint / "model.safetensors")
    wide = {name: tensor.to(exported.dtype).float() for name, tensor in stored.items()}
    save_file(wide, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_it_is_verified_in_fp32_and_the_report_says_so(exported: Exported) -> None:
    with show_progress(2) as progress:
        report = verify(
            exported.model_dir, find_source(str(exported.checkpoint)), VerifyOptions(num_tokens=8), progress
        )
    assert report.passed, report.faults
    assert (report.weights, report.computed_in) == (ELEMENT_TYPES[exported.dtype].weights, "float32")
    assert "computed in fp32 for want of a GPU" in report.summary()
    check_digests(exported.model_dir, load_manifest(exported.model_dir))


def test_without_a_gpu_it_is_not_served(bf16_model: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir = bf16_model.model_dir
    cause = "computes in bfloat16, which needs an NVIDIA GPU"
    with pytest.raises(ManifestError, match=cause):
        SlotRunner(model_dir, load_manifest(model_dir), 1, 64)
    flags = [f"--{name}address=127.0.0.1:0" for name in ("", "metrics-", "admin-")]
    assert main(["serve", "--model", str(model_dir), *flags]) == 1
    assert cause in capsys.readouterr().err.splitlines()[-1]


def test_a_cache_of_another_type_than_the_weights_is_refused(bf16_model: Exported) -> None:
    path = bf16_model.model_dir / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"bfloat16"', '"float16"'))
    try:
        with pytest.raises(ManifestError, match="the weights are bf16 and the cache is float16"):
            load_manifest(bf16_model.model_dir)
    finally:
        path.write_text(text)


def test_a_bf16_checkpoint_is_stored_as_it_is(tmp_path: Path) -> None:
    checkpoint = store_as(save_random_model(tmp_path / "checkpoint", tie_word_embeddings=False))
    graph = export_as(checkpoint, tmp_path / "model", torch.bfloat16).graph
    stored = load_file(checkpoint / "model.safetensors")["lm_head.weight"]
    found = array_of(graph.initializers["lm_head.weight.transpose"]).T.view(np.int16)
    assert np.array_equal(found, stored.view(torch.int16).numpy())


def test_weights_beyond_fp16_are_refused(tmp_path: Path) -> None:
    checkpoint = save_random_model(tmp_path / "checkpoint")
    stored = load_file(checkpoint / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"][0, 0] = 70000.0
    save_file(stored, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"up_proj.weight has weights that fp16 cannot hold"):
        export_as(checkpoint, tmp_path / "model", torch.float16)
