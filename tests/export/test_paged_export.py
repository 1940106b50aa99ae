"""The graph of lowering paged: its interface, its types, and what it says over small models of many kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from llm_grpc import graph_names as names
from llm_grpc.cli.main import main
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk
from llm_grpc.errors import ManifestError
from llm_grpc.export.attention_paged import block_size_of
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe, Weights
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.export.verify_drive import prefill
from llm_grpc.export.widen import widened
from llm_grpc.manifest import check_digests, load_manifest
from llm_grpc.runtime.interface import check_interface
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.export.cuda_kernels import load_kernels, without_kernel
from tests.export.families import FAMILIES, Family
from tests.export.paged_models import CONTEXT, Paged, exported, in_fp32
from tests.export.random_model import Eager, save_random_model, store_as
from tests.export.test_half import check_types, schemas_of
from tests.export.threefold import ids

EQUAL, TOLERANCE = 1e-5, 5e-4
"""Of the largest logit: both lowerings add in another order; torch does not round the angles to fp16."""

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

ON_THE_PROCESSOR = frozenset({
    "Compress", "ConcatFromSequence", "If", "Loop", "NonMaxSuppression", "NonZero", "Range", "Scan",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "Shape", "Size", "SplitToSequence", "Unique",
})  # fmt: skip
"""Operators that ONNX Runtime's CUDA provider has no kernel of, or whose sizes the processor must know."""

TRACED = {family.name: family for family in FAMILIES}
CHECKED = [
    TRACED[name]
    for name in (
        "llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "cohere2", "glm4", "gpt_oss",
        "deepseek_v3", "smollm3",
    )
]  # fmt: skip
"""Grouped heads, windows, norms in between, caps, two bases, no rotation, neighbours, half heads, sinks, and
keys wider than values."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("paged") / "checkpoint")


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def weights(request: pytest.FixtureRequest) -> Weights:
    chosen: Weights = request.param
    return chosen


@pytest.fixture(scope="module")
def model_dir(checkpoint: Path, weights: Weights) -> Path:
    return exported(checkpoint, checkpoint.parent / weights, "paged", weights)


@pytest.fixture(scope="module")
def graph(model_dir: Path) -> ir.Graph:
    found: ir.Graph = ir.load(model_dir / "model.onnx").graph
    return found


def test_the_manifest_says_how_blocks_are(model_dir: Path, weights: Weights) -> None:
    manifest = load_manifest(model_dir)
    assert (manifest.lowering, manifest.block_size, manifest.weights) == ("paged", 256, weights)
    assert manifest.recordable
    assert {names.BLOCKS_GRAPH, names.SAMPLER_GRAPH} <= manifest.files.keys()


@pytest.mark.parametrize(("head_dim", "tokens"), [(8, 256), (64, 256), (72, 128), (128, 128), (256, 64)])
def test_a_block_is_what_flash_attention_reads_at_once(head_dim: int, tokens: int) -> None:
    assert block_size_of(head_dim) == tokens


def test_caches_go_in_and_out_in_one_type_and_shape(graph: ir.Graph, weights: Weights) -> None:
    inputs, outputs = ({str(value.name): value for value in x} for x in (graph.inputs, graph.outputs))
    caches = [name for name in inputs if name.startswith("past.")]
    assert len(caches) == 2 * 3
    for name in caches:
        past, present = inputs[name], outputs[name.replace("past", "present")]
        assert past.dtype == present.dtype == TYPES[weights]
        assert past.shape is not None
        assert list(past.shape)[2:] == [2, 16]
        (node,) = {use.node for use in past.uses()}
        assert node.op_type == "PagedAttention"
        assert present.producer() is node, "the node writes the cache where it lies"


def test_the_rest_of_its_inputs_are_small_integers(graph: ir.Graph) -> None:
    found = {
        str(value.name): value.dtype for value in graph.inputs if not str(value.name).startswith("past.")
    }
    wide = dict.fromkeys((names.INPUT_IDS, names.LOGIT_ROWS), ir.DataType.INT64)
    short = dict.fromkeys(names.PAGED_INPUTS[3:], ir.DataType.INT32)
    assert found == wide | short
    assert [value.name for value in graph.outputs][:2] == [names.GREEDY, names.LOGITS]
    assert [value.dtype for value in graph.outputs][:2] == [ir.DataType.INT64, ir.DataType.FLOAT]


def test_every_type_is_the_operator_s(graph: ir.Graph) -> None:
    schemas = schemas_of(graph)
    for node in graph:
        check_types(node, schemas[node.domain, node.op_type])


def test_all_that_it_lacks_here_are_kernels(checkpoint: Path, tmp_path: Path) -> None:
    """ONNX Runtime finds the graph right by every operator's own rules, before it looks for kernels."""
    directory = exported(checkpoint, tmp_path / "model", "paged", "bf16")
    with pytest.raises(NoKernel, match="Could not find an implementation for"):
        ort.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])


def test_nothing_is_computed_in_fp32_but_logits(graph: ir.Graph) -> None:
    wide = [node.op_type for node in graph if any(x.dtype == ir.DataType.FLOAT for x in node.outputs)]
    assert wide == ["Cast"]


def test_a_llama_s_layer_is_thirteen_nodes(graph: ir.Graph) -> None:
    """Nothing stands between a product and its attention but a change of sizes, which copies nothing."""
    kinds = [node.op_type for node in graph]
    layer = [
        "MatMul", "Reshape", "PagedAttention", "Reshape", "MatMul", "SkipSimplifiedLayerNormalization",
        "MatMul", "Sigmoid", "Mul", "MatMul", "Mul", "MatMul", "SkipSimplifiedLayerNormalization",
    ]  # fmt: skip
    ends = ["Gather", "Gather", "Transpose", "MatMul", "Cast", "ArgMax"]
    assert kinds == ["Gather", "SimplifiedLayerNormalization", *layer * 3, *ends]


def test_nothing_runs_on_the_processor(graph: ir.Graph) -> None:
    kinds = {node.op_type for node in graph}
    assert not kinds & ON_THE_PROCESSOR


def test_every_node_has_a_kernel_on_gpus(model_dir: Path) -> None:
    graphs = sorted(model_dir.glob("*.onnx"))
    assert len(graphs) == 3
    assert [line for path in graphs for line in without_kernel(path, load_kernels())] == []


def test_a_manifest_of_other_shapes_is_refused(model_dir: Path) -> None:
    with widened(model_dir, load_manifest(model_dir)) as (directory, manifest):
        session = ort.InferenceSession(str(directory / "model.onnx"))
        check_interface(session, manifest)
        for field in ("num_heads", "head_dim", "num_layers"):
            kv = manifest.kv_cache.model_copy(update={field: 1})
            with pytest.raises(ManifestError):
                check_interface(session, manifest.model_copy(update={"kv_cache": kv}))


@pytest.mark.parametrize("family", CHECKED, ids=lambda family: family.name)
def test_over_blocks_it_computes_what_slots_and_torch_do(family: Family, tmp_path: Path) -> None:
    """Torch reads weights that were rounded before; both exports compute in fp32 here."""
    # The square root of 64 is exact in 16 bits, to which some models round it.
    config = {**family.config, "hidden_size": 64} if "gemma" in family.name else family.config
    checkpoint = store_as(
        save_random_model(tmp_path / "checkpoint", family.model_type, **config), torch.float16
    )
    eager = Eager(checkpoint)
    with in_fp32(exported(checkpoint, tmp_path / "model", "paged")) as (directory, manifest):
        paged = Paged.of(directory, manifest, max_running=3)
        first, second = ids(1, 50), ids(2, 40)
        found = [paged.step(chunks=[PrefillChunk(0, 0, first[:33]), PrefillChunk(2, 0, second[:7])])]
        found.append(paged.step([DecodeRow(0, first[33], 33)], [PrefillChunk(2, 7, second[7:39])]))
        found.append(paged.step([DecodeRow(2, second[39], 39), DecodeRow(0, first[34], 34)]))
    mine = np.concatenate([found[0][:33], found[1][:1], found[2][1:]])
    other = np.concatenate([found[0][33:], found[1][1:], found[2][:1]])
    with in_fp32(exported(checkpoint, tmp_path / "slots", "slots")) as (directory, manifest):
        slots = SlotRunner(directory, manifest, 1, CONTEXT, threads=1)
        for logits, tokens in ((mine, first[:35]), (other, second)):
            wanted, torchs = prefill(slots, tokens), eager.logits(tokens)
            assert np.abs(logits - wanted).max() <= EQUAL * np.abs(wanted).max()
            assert np.abs(logits - torchs).max() <= TOLERANCE * np.abs(torchs).max()
    has_experts = "experts" in family.odd
    assert load_manifest(tmp_path / "model").recordable != has_experts
    assert paged.runner.num_graphs == (0 if has_experts else 1)


def test_an_export_is_verified_and_says_how(checkpoint: Path, tmp_path: Path) -> None:
    export(
        str(checkpoint),
        tmp_path / "model",
        "model",
        VerifyOptions(num_tokens=4),
        Recipe("fp16", lowering="paged"),
    )
    report = json.loads((tmp_path / "model" / "verification.json").read_text())
    assert (report["passed"], report["computed_in"], report["attention"]) == (True, "float32", "definition")
    check_digests(tmp_path / "model", load_manifest(tmp_path / "model"))


def test_inspect_counts_blocks(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(model_dir), "--memory", "1GiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    block = 256 * found["kv_bytes_per_token"]
    # A sequence of the context's 128 tokens takes a whole block; one is the runner's.
    assert found["slots"]["128"] == (2**30 - found["weights_bytes"]) // block - 1
    assert main(["model", "inspect", str(model_dir)]) == 0
    assert "paged in blocks of 256 tokens" in capsys.readouterr().out


def test_int4_weights_are_paged_too(checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe("int4", dtype="fp16", lowering="paged")
    export(
        str(checkpoint), tmp_path / "model", "model", VerifyOptions(num_tokens=1, allow_inexact=True), recipe
    )
    graph = ir.load(tmp_path / "model" / "model.onnx").graph
    kinds = [node.op_type for node in graph]
    assert kinds.count("PagedAttention") == 3
    assert kinds.count("MatMulNBits") >= 3 * 4
    assert load_manifest(tmp_path / "model").kv_cache.dtype == "float16"
