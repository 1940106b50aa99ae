"""The check of a graph against the kernels of the CUDA provider, and the list of operators without bf16."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from llm_grpc.export.passes.half import WITHOUT_BF16, WITHOUT_FP16
from tests.export.cuda_kernels import NO_END, Kernel, _schemas, load_kernels, without_kernel

KERNELS = load_kernels()


def graph(
    path: Path, operator: str, dtype: int, domain: str = "", outputs: int = 1, **attributes: int
) -> Path:
    """One node over two values of ``dtype``, or one."""
    names = ["a", "b"] if operator in {"Add", "MatMul"} else ["a"]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    result = TensorProto.INT64 if operator == "ArgMax" else dtype
    values = [helper.make_tensor_value_info(name, dtype, [2, 2]) for name in names]
    made = helper.make_graph([node], "one", values, [helper.make_tensor_value_info("y", result, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets), path)
    return path


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("operator", ["Add", "MatMul"])
def test_what_has_kernels(tmp_path: Path, operator: str, dtype: int) -> None:
    assert without_kernel(graph(tmp_path / "model.onnx", operator, dtype), KERNELS) == []


def test_a_type_without_a_kernel(tmp_path: Path) -> None:
    (line,) = without_kernel(graph(tmp_path / "model.onnx", "ArgMax", TensorProto.BFLOAT16), KERNELS)
    assert line.startswith("ArgMax (ai.onnx.ArgMax, T tensor(bfloat16)")
    assert line.endswith("kernels takes its types")
    assert without_kernel(graph(tmp_path / "model.onnx", "ArgMax", TensorProto.FLOAT16), KERNELS) == []


def test_an_operator_without_a_kernel(tmp_path: Path) -> None:
    path = graph(tmp_path / "model.onnx", "Det", TensorProto.FLOAT)
    (line,) = without_kernel(path, KERNELS)
    assert line.endswith("no kernel")


@pytest.mark.parametrize(
    ("start", "end", "since", "fits"),
    [
        (13, NO_END, 13, True),
        (13, NO_END, 14, False),  # nobody knows what changed in 14
        (7, 13, 13, True),
        (7, 12, 13, False),
        (14, 18, 13, False),
    ],
)
def test_versions_as_the_runtime_compares_them(start: int, end: int, since: int, fits: bool) -> None:
    assert Kernel(start, end, {}).fits(since) is fits


OPSET = 18
NOT_IN_DECODERS = {"BatchNormalization", "DepthToSpace", "LRN", "Resize", "SpaceToDepth"}


def fitting(operator: str) -> list[Kernel]:
    """The kernels of one of ONNX's own operators in the version that graphs have."""
    since = max(s.since_version for s in _schemas()["", operator] if s.since_version <= OPSET)
    return [kernel for kernel in KERNELS.get(("", operator), []) if kernel.fits(since)]


def takes(kernel: Kernel, dtype: str) -> bool:
    return any(dtype in types for types in kernel.types.values())


@pytest.mark.parametrize(
    ("stated", "dtype"), [(WITHOUT_BF16, "tensor(bfloat16)"), (WITHOUT_FP16, "tensor(float16)")]
)
def test_the_operators_that_are_cast_around_have_no_kernel(stated: frozenset[str], dtype: str) -> None:
    """But one, which is as exact as torch's in fp32 alone."""
    has_kernel = {operator for operator in stated if any(takes(k, dtype) for k in fitting(operator))}
    assert has_kernel <= {"ReduceMean"}


def test_no_other_operator_that_takes_bf16_lacks_a_kernel_for_it() -> None:
    """Of those that have kernels on GPUs for other types."""
    lacking = set()
    for (domain, operator), versions in _schemas().items():
        if domain or versions[0].since_version > OPSET:
            continue
        newest = [schema for schema in versions if schema.since_version <= OPSET][-1]
        allowed = {text for c in newest.type_constraints for text in c.allowed_type_strs}
        kernels = fitting(operator)
        if (
            "tensor(bfloat16)" in allowed
            and kernels
            and not any(takes(k, "tensor(bfloat16)") for k in kernels)
        ):
            lacking.add(operator)
    assert lacking - WITHOUT_BF16 - NOT_IN_DECODERS == set()
