"""Which nodes of a graph ONNX Runtime's CUDA provider has no kernel for.

Kernels are those of tests/data/cuda_kernels.json, which the slow test of this name makes again from the
package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

DATA = Path(__file__).parents[1] / "data" / "cuda_kernels.json"
NO_END = 2**31 - 1


@dataclass(frozen=True)
class Kernel:
    """For the operator's versions from ``start`` to ``end``; ``types`` by the schema's type parameter, or by
    the name of an input or output.
    """

    start: int
    end: int
    types: dict[str, list[str]]

    def fits(self, since: int) -> bool:
        """Whether it is one for the operator as it is since version ``since``; as ONNX Runtime asks it."""
        return since == self.start or (self.end != NO_END and self.start <= since <= self.end)


Kernels = dict[tuple[str, str], list[Kernel]]
"""By domain and operator."""


def load_kernels(data: Path = DATA) -> Kernels:
    """Those of the file."""
    found: Kernels = {}
    for domain, operator, start, end, types in json.loads(data.read_text())["kernels"]:
        found.setdefault((domain, operator), []).append(Kernel(start, end or NO_END, types))
    return found


def without_kernel(graph: Path, kernels: Kernels) -> list[str]:
    """A line for each node of the ONNX file whose operator and types no kernel takes; subgraphs included."""
    model = ir.load(graph)
    faults = []
    for part in (model.graph, *model.graph.subgraphs()):
        faults += [line for node in part if (line := _fault(node, model.opset_imports, kernels))]
    return faults


def _fault(node: ir.Node, opsets: dict[str, int], kernels: Kernels) -> str:
    domain = "" if node.domain == "ai.onnx" else node.domain
    schema = _schema(domain, node.op_type, opsets.get(domain, 1))
    types = dict(_types(node, schema))
    there = [k for k in kernels.get((domain, node.op_type), []) if k.fits(schema.since_version)]
    if any(_takes(kernel, types) for kernel in there):
        return ""
    said = ", ".join(f"{name} {found}" for name, found in sorted(types.items()))
    why = "no kernel" if not there else f"none of {len(there)} kernels takes its types"
    return f"{node.name or node.op_type} ({domain or 'ai.onnx'}.{node.op_type}, {said}): {why}"


def _takes(kernel: Kernel, types: dict[str, str]) -> bool:
    return all(types[name] in allowed for name, allowed in kernel.types.items() if name in types)


def _types(node: ir.Node, schema: Any) -> Iterator[tuple[str, str]]:
    """The element type by type parameter and by the name of the input or output."""
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for place, value in enumerate(values):
            if value is not None and value.name and value.type is not None:
                parameter = formal[min(place, len(formal) - 1)]
                found = f"tensor({value.type.dtype.name.lower()})"
                yield parameter.typeStr, found
                yield parameter.name, found


@cache
def _schemas() -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for schema in sorted(get_all_operator_schema(), key=lambda schema: schema.since_version):
        found.setdefault(("" if schema.domain == "ai.onnx" else schema.domain, schema.name), []).append(
            schema
        )
    return found


def _schema(domain: str, operator: str, opset: int) -> Any:
    """The operator as ``opset`` has it; the newest where no version is as old (contributed operators)."""
    versions = _schemas()[domain, operator]
    known = [schema for schema in versions if schema.since_version <= opset]
    return (known or versions)[-1]
