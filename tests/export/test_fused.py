"""Norms and rotations become one node each where they compute what the node computes, and only there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from llm_grpc.export.fused_norm import RmsNorm, fused_norms, recognised
from llm_grpc.export.fused_rotary import fused_rotary
from llm_grpc.export.rotary_form import Form, form_of
from tests.export import fused_cases as cases

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")

WIDTH = 16
NORMS = [(LlamaRMSNorm, 0.0), (Olmo2RMSNorm, 0.0), (GptOssRMSNorm, 0.0), (Gemma3RMSNorm, 1.0)]


class Norm(torch.nn.Module):
    """A norm whose formula a test may change."""

    def __init__(self, used: float = 1e-6, stated: float = 1e-6, centred: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(WIDTH))
        self.eps, self.dropout, self._used, self._centred = stated, 0.1, torch.tensor(used), centred

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        if self._centred:
            x = x - x.mean(-1, keepdim=True)
        x = self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._used)
        return x if gate is None else x * gate


class Gated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(x, x)


def operators(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def run(graph: onnx.ModelProto, *args: torch.Tensor) -> list[Any]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {f"in{i}": value.numpy() for i, value in enumerate(args)}))


def form(function: Any, *args: torch.Tensor) -> Form | None:
    return form_of(function, signature(function).bind(*args))


@pytest.mark.parametrize(("norm", "offset"), NORMS)
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6, 1e-12])
def test_a_norm_is_recognised_whatever_its_weights_hold(norm: Any, offset: float, epsilon: float) -> None:
    module = norm(WIDTH, eps=epsilon)
    module.weight = torch.nn.Parameter(torch.tensor(float("nan")).expand(WIDTH))
    assert recognised(module) == RmsNorm("weight", offset, epsilon)


@pytest.mark.parametrize(
    "module",
    [
        Norm(centred=True),
        Norm(used=1e-6, stated=1e-5),
        Norm(used=1e-6, stated=1.1e-6),
        torch.nn.LayerNorm(WIDTH, bias=False),
        torch.nn.LayerNorm(WIDTH),
        torch.nn.PReLU(WIDTH),
    ],
)
def test_another_formula_is_not_a_norm(module: torch.nn.Module) -> None:
    assert recognised(module) is None


@pytest.mark.parametrize(("norm", "offset"), NORMS)
def test_a_norm_is_one_node_that_computes_it(norm: Any, offset: float) -> None:
    module, x = norm(WIDTH), torch.randn(1, 2, 5, WIDTH)
    torch.nn.init.normal_(module.weight)
    graph = cases.traced(module, (x[:, :, :3],), (2,))
    assert operators(graph)["SimplifiedLayerNormalization"] == 1
    assert not operators(graph).keys() & {"Sqrt", "ReduceMean", "Pow"}
    np.testing.assert_allclose(run(graph, x)[0], module(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_of_halves_hands_out_halves(dtype: torch.dtype) -> None:
    graph = cases.traced(LlamaRMSNorm(WIDTH).to(dtype), (torch.ones(1, 3, WIDTH, dtype=dtype),), (1,))
    assert operators(graph)["SimplifiedLayerNormalization"] == 1
    wanted = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}[dtype]
    assert graph.graph.output[0].type.tensor_type.elem_type == wanted


def test_a_norm_that_is_given_more_than_its_input_keeps_its_code() -> None:
    model, x = Gated(), torch.randn(1, 3, WIDTH)
    assert recognised(model.norm) is not None
    graph = cases.traced(model, (x,), (1,))
    assert operators(graph)["SimplifiedLayerNormalization"] == 0
    np.testing.assert_allclose(run(graph, x)[0], model(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", cases.ROTATIONS)
def test_a_rotation_is_recognised(name: str) -> None:
    found = form(getattr(cases, name), *cases.inputs(name, 5))
    assert found is not None
    assert (found.columns, found.neighbours, found.sorts) == cases.ROTATIONS[name]


@pytest.mark.parametrize("name", cases.ROTATIONS)
def test_a_rotation_is_one_node_for_each_of_query_and_key(name: str) -> None:
    model = cases.Rotates(name)
    graph, args = cases.traced(model, cases.inputs(name, 5), (2, 2, 1, 1)), cases.inputs(name, 9)
    assert operators(graph)["RotaryEmbedding"] == 2
    assert operators(graph)["Neg"] == 0
    for found, wanted in zip(run(graph, *args), model(*args), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_function_of_one_tensor_is_one_node() -> None:
    model, (cos, sin) = cases.RotatesOne(), cases.angles("all", 9)
    x = torch.randn(1, 9, cases.HEADS, cases.WIDTH)
    graph = cases.traced(model, (x[:, :5], cos[:, :5], sin[:, :5]), (1, 1, 1))
    assert operators(graph)["RotaryEmbedding"] == 1
    np.testing.assert_allclose(run(graph, x, cos, sin)[0], model(x, cos, sin), rtol=1e-5, atol=1e-5)


def test_what_is_no_rotation_keeps_its_code() -> None:
    model, args = cases.Rotates("mirror"), cases.inputs("mirror", 9)
    graph = cases.traced(model, cases.inputs("mirror", 5), (2, 2, 1, 1))
    assert operators(graph)["RotaryEmbedding"] == 0
    np.testing.assert_allclose(run(graph, *args)[0], model(*args)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "layout"), [("llama", "neighbours"), ("cohere", "halves")])
def test_angles_that_do_not_stand_as_the_function_wants_are_no_rotation(name: str, layout: str) -> None:
    q, k, *_ = cases.inputs(name, 5)
    assert form(getattr(cases, name), q, k, *cases.angles(layout, 5)) is None


def test_angles_that_are_all_the_same_do_not_tell_where_they_stand() -> None:
    q, k, cos, sin = cases.inputs("llama", 5)
    assert form(cases.llama, q, k, torch.full_like(cos, 0.6), torch.full_like(sin, 0.8)) is None


def test_a_model_is_as_it_was_after_an_exception() -> None:
    norm, rotation = LlamaRMSNorm(WIDTH), cases.llama
    model = torch.nn.Sequential(norm, cases.Rotates("llama"))
    before = dict(vars(norm))
    with pytest.raises(RuntimeError, match="in the trace"):
        _fail_in_a_trace(model, lambda: cases.llama is not rotation and "forward" in vars(norm))
    assert cases.llama is rotation
    assert vars(norm) == before


def _fail_in_a_trace(model: torch.nn.Module, swapped: Callable[[], bool]) -> None:
    with fused_norms(model), fused_rotary(model):
        assert swapped()
        raise RuntimeError("in the trace")


def test_an_exported_llama_has_a_node_for_each_norm_and_none_for_rotations(model_dir: Path) -> None:
    found = operators(onnx.load(model_dir / "model.onnx", load_external_data=False))
    layers = found["GroupQueryAttention"] // 2
    assert found["SimplifiedLayerNormalization"] == 1, "the first; the others come after a sum"
    assert found["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert found["Slice"] == 3 * layers, "a half each, and the rows of the first that are wanted"
    assert not found.keys() & {"Neg", "Sqrt", "ReduceMean", "RotaryEmbedding", "Cos"}
