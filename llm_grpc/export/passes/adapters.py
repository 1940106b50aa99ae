"""Room for adapters beside the linear layers of a graph.

All adapters that are loaded stand side by side in two matrices, and each token's row of a mask takes the
columns of its own: ``y + ((x @ down) * mask) @ up``. It is computed in fp32 from what a layer reads before
that is rounded, whatever format its weights get.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx_ir as ir
import torch

from llm_grpc import graph_names as names
from llm_grpc.adapter_room import AdaptedLinear, AdapterRoom
from llm_grpc.errors import ExportError
from llm_grpc.export.passes.linears import Linear, bias_of, groups_of

_WEIGHT = ".weight"
_SAMPLE = 256
"""Numbers of each parameter that identify a model: reading all of them would take as long as exporting."""


def make_room(model: ir.Model, weights: Mapping[str, torch.Tensor], max_rank: int) -> AdapterRoom:
    """Add to each linear layer that reads all tokens what adapters change, as inputs of the graph.

    What multiplies the rows of some tokens alone takes none: experts, and what gives the logits.

    Raises:
        ExportError: there is no such layer.
    """
    side = _Side(model.graph)
    linears = [
        side.add(linear, group.x, parts)
        for group in groups_of(model)
        if _is_for_all_tokens(group.x)
        for linear in group.linears
        if (parts := _parts(linear, weights))
    ]
    if not linears:
        raise ExportError("--max-adapter-rank: the graph has no linear layer that an adapter could change")
    return AdapterRoom(max_rank=max_rank, base=_identity(weights), linears=tuple(linears))


def _is_for_all_tokens(x: ir.Value) -> bool:
    sizes = [str(size) for size in x.shape or ()]
    return sizes[:-1] in (["1", "tokens"], ["tokens"])


def _parts(linear: Linear, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The modules that a layer is made of, and the columns of each; none where one is no module's weight."""
    rows, columns = linear.shape
    parts = {
        name.removesuffix(_WEIGHT): weights[name].numel() // rows
        for name in linear.sources
        if name.endswith(_WEIGHT)
    }
    return parts if sum(parts.values()) == columns else {}


def _identity(weights: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of the names, shapes and first numbers of all parameters, the numbers in fp32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().flatten()[:_SAMPLE].float().numpy().tobytes())
    return digest.hexdigest()


class _Side:
    """Writes the branches beside the linear layers of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._count = 0
        self._mask = self._input(names.ADAPTER_ROWS, ["tokens", "ranks"])
        self._masks = {1: self._mask}
        self._wide: dict[ir.Value, ir.Value] = {}

    def add(self, linear: Linear, x: ir.Value, parts: dict[str, int]) -> AdaptedLinear:
        """Let adapters add to what ``linear`` gives, its bias included."""
        rows, columns = linear.shape
        number, count = self._count, len(parts)
        self._count += 1
        ranks = "ranks" if count == 1 else f"ranks_{count}"
        down = self._input(names.adapter_down(number), [rows, ranks])
        up = self._input(names.adapter_up(number), [ranks, columns])
        last = bias_of(linear.node) or linear.node
        out = last.outputs[0]
        wide = self._fp32(x, linear.node)
        nodes = [ir.node("MatMul", [wide, down])]
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], self._repeated(count)]))
        nodes.append(ir.node("MatMul", [nodes[-1].outputs[0], up]))
        if out.dtype != ir.DataType.FLOAT:
            nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": out.dtype}))
        nodes.append(ir.node("Add", [out, nodes[-1].outputs[0]]))
        total = nodes[-1].outputs[0]
        total.shape, total.type = out.shape, out.type
        ir.convenience.replace_all_uses_with(out, total)
        nodes[-1].replace_input_with(0, out)
        self._graph.insert_after(last, nodes)
        return AdaptedLinear(rows=rows, parts=parts)

    def _input(self, name: str, sizes: list[int | str]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(sizes), type=ir.TensorType(ir.DataType.FLOAT))
        self._graph.inputs.append(value)
        return value

    def _repeated(self, count: int) -> ir.Value:
        """The mask once for each of ``count`` parts."""
        if count not in self._masks:
            node = ir.node("Concat", [self._mask] * count, {"axis": 1})
            self._graph.insert_before(self._graph[0], node)
            self._masks[count] = node.outputs[0]
        return self._masks[count]

    def _fp32(self, x: ir.Value, before: ir.Node) -> ir.Value:
        if x.dtype == ir.DataType.FLOAT:
            return x
        if x not in self._wide:
            node = ir.node("Cast", [x], {"to": ir.DataType.FLOAT})
            node.outputs[0].shape, node.outputs[0].type = x.shape, ir.TensorType(ir.DataType.FLOAT)
            self._graph.insert_before(before, node)
            self._wide[x] = node.outputs[0]
        return self._wide[x]
