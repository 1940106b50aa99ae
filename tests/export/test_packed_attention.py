"""What stands between a product and the attention goes into the attention's nodes where they compute it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from llm_grpc.export.command import export
from llm_grpc.export.passes.rotary_tables import MAX_TABLE_BYTES, RotaryTables
from llm_grpc.export.passes.skip_norms import skip_norms
from llm_grpc.export.verify import VerifyOptions
from tests.export.random_model import save_random_model

CONTEXT = 128
"""Of the random models."""


def exported(directory: Path, architecture: str, **config: Any) -> onnx.GraphProto:
    source = save_random_model(directory / "source", architecture, **config)
    export(str(source), directory / "model", "model", VerifyOptions(num_tokens=1))
    return onnx.load(directory / "model" / "model.onnx", load_external_data=False).graph


def attention(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "GroupQueryAttention"]


def turns(node: onnx.NodeProto) -> bool:
    return any(a.name == "do_rotary" and a.i == 1 for a in node.attribute)


def test_a_llama_s_attention_reads_one_product_and_turns_it(tmp_path: Path) -> None:
    graph = exported(tmp_path, "llama")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in attention(graph):
        assert list(node.input[1:3]) == ["", ""]
        assert turns(node)
        assert [shapes[name][0] for name in node.input[7:9]] == [CONTEXT, CONTEXT]
    assert "position_ids" not in {value.name for value in graph.input}


def test_norms_of_queries_and_keys_stand_between(tmp_path: Path) -> None:
    """Their results are turned by the attention, and are three inputs of it."""
    nodes = attention(exported(tmp_path, "qwen3"))
    assert all(all(node.input[:3]) and turns(node) for node in nodes)


def test_without_rotation_the_product_is_read_as_it_is(tmp_path: Path) -> None:
    nodes = attention(exported(tmp_path, "gpt2"))
    assert all(list(node.input[1:3]) == ["", ""] and not turns(node) for node in nodes)


def parsed(text: str) -> ir.Model:
    header = '<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>\n'
    return ir.from_proto(onnx.parser.parse_model(header + text))


def tables(body: str, context_tokens: int) -> tuple[RotaryTables, ir.Value]:
    """The tables of a graph whose last node computes ``out`` from positions; one number is 0.5."""
    interface = "(int64[1, T] position_ids, float[1] other) => (float[T, 1] out) <float half = {0.5}>"
    model = parsed(f"step {interface} {{{body}}}")
    return RotaryTables(model.graph, context_tokens), model.graph.outputs[0]


PLACES = "p = Cast <to = 1> (position_ids) q = Transpose <perm = [1, 0]> (p) "


def test_a_table_has_a_row_for_each_position() -> None:
    found, out = tables(PLACES + "h = Mul (q, half) out = Cos (h)", 50)
    assert found.have(out)
    value = found.of(out)
    assert value.const_value is not None
    assert np.allclose(value.const_value.numpy(), np.cos(np.arange(50) / 2)[:, None], atol=1e-6)
    assert found.of(out) is value, "one table, however many layers read it"


@pytest.mark.parametrize(
    "body",
    [
        PLACES + "m = ReduceMax <keepdims = 1> (q) out = Div (q, m)",  # depends on the others of the step
        PLACES + "out = Mul (q, other)",  # depends on another input
    ],
)
def test_what_depends_on_more_than_the_position_is_no_table(body: str) -> None:
    found, out = tables(body, 50)
    assert not found.have(out)


def test_a_table_that_would_be_too_large_is_not_computed() -> None:
    found, out = tables(PLACES + "out = Mul (q, half)", MAX_TABLE_BYTES)
    assert not found.have(out)


NORM = "n = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (s, w) "


def test_a_sum_is_computed_beside_its_norm_and_is_read_by_others() -> None:
    body = "(float[1, 3, 8] a, float[1, 3, 8] b, float[8] w) => (float[1, 3, 8] out)"
    model = parsed(
        f"step {body} <float[1, 3, 8] s> {{ s = Add (a, b) r = Relu (s) {NORM} out = Mul (n, r) }}"
    )
    skip_norms(model)
    assert sorted(node.op_type for node in model.graph) == ["Mul", "Relu", "SkipSimplifiedLayerNormalization"]


def test_a_sum_with_a_smaller_value_stays() -> None:
    body = "(float[1, 3, 8] a, float[1, 1, 8] b, float[8] w) => (float[1, 3, 8] out)"
    model = parsed(f"step {body} <float[1, 3, 8] s> {{ s = Add (a, b) {NORM} out = Mul (n, s) }}")
    skip_norms(model)
    assert "SkipSimplifiedLayerNormalization" not in {node.op_type for node in model.graph}
