"""A traced graph without what the trace left in it that no run needs."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from llm_grpc.export.passes.nodes import replace_node


def with_shapes(graph: onnx.ModelProto) -> ir.Model:
    """The graph with the rank of every value and the sizes that are constant.

    Names that inference invents for the others may be wrong (it takes a split for one in halves).
    """
    model: ir.Model = ir.from_proto(SymbolicShapeInference.infer_shapes(graph, auto_merge=True))
    return model


def without_shapes(model: ir.Model) -> None:
    """Forget the shapes of values inside the graph: ONNX Runtime plans its memory by the names in them."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def tidy(model: ir.Model) -> None:
    """Take out nodes without effect, second computations of one thing, and what nothing reads."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=64)(model)
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _split_gemm(model.graph, node)
        elif node.op_type == "Reshape":
            _skip_reshapes(node)
        elif node.op_type == "Cast":
            _skip_cast(node)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _skip_reshapes(node: ir.Node) -> None:
    """Read what the reshapes before ``node`` read; drop ``node`` if the shape comes out as it was."""
    source, sizes = node.inputs[0], node.inputs[1]
    target = None if sizes is None else ir.convenience.get_const_tensor(sizes)
    if source is None or target is None or 0 in target.numpy():
        return
    while (before := source.producer()) is not None and before.op_type == "Reshape":
        source = before.inputs[0]
        assert source is not None
    node.replace_input_with(0, source)
    if _is_shape_of(source, [int(size) for size in target.numpy()]):
        _bypass(node)


def _skip_cast(node: ir.Node) -> None:
    source = node.inputs[0]
    if source is not None and source.dtype == node.attributes["to"].as_int():
        _bypass(node)


def _is_shape_of(value: ir.Value, target: list[int]) -> bool:
    """Whether a reshape to ``target``, in which one size may be open, gives back the value."""
    if value.shape is None or len(value.shape) != len(target):
        return False
    pairs = zip(value.shape, target, strict=True)
    return all(t == -1 if isinstance(size, ir.SymbolicDim) else t in (-1, size) for size, t in pairs)


def _bypass(node: ir.Node) -> None:
    source, out = node.inputs[0], node.outputs[0]
    if out.is_graph_output() or source is None:
        return
    ir.convenience.replace_all_uses_with(out, source)


def _split_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """A matrix product and an addition, which later passes know."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = attributes.pop("alpha", 1.0) == 1 == attributes.pop("beta", 1.0) and not attributes.get("transA")
    if not plain or len(node.inputs) != 3:
        return
    x, weight, bias = node.inputs
    new: list[ir.Node] = []
    if attributes.get("transB"):
        new.append(ir.node("Transpose", [weight], {"perm": [1, 0]}))
        weight = new[-1].outputs[0]
    new.append(ir.node("MatMul", [x, weight]))
    new.append(ir.node("Add", [new[-1].outputs[0], bias]))
    product = new[-2].outputs[0]
    product.shape, product.type = node.outputs[0].shape, node.outputs[0].type
    replace_node(graph, node, new)
