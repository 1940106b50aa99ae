"""Tied weights, stored once."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def share_transposed(model: onnx.ModelProto) -> None:
    """Replace every initializer that is another one transposed by a Transpose node over that one.

    The exporter folds the transposition of a tied output projection into a second copy of the embedding;
    ONNX Runtime folds it again at load time, so the node costs nothing in a run. Matrices are looked at one
    or two at a time: reading one copies it.
    """
    originals: dict[bytes, onnx.TensorProto] = {}
    twins: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) != 2:
            continue
        matrix = numpy_helper.to_array(tensor)
        twin = originals.get(_key(matrix.T))
        if twin is not None and np.array_equal(numpy_helper.to_array(twin).T, matrix):
            twins[tensor.name] = twin.name
        else:
            originals[_key(matrix)] = tensor
    for name, original in twins.items():
        _remove(model.graph, name)
        model.graph.node.insert(0, helper.make_node("Transpose", [original], [name], perm=[1, 0]))


def _key(matrix: np.ndarray) -> bytes:
    """Shape and diagonal: equal for equal matrices, cheap to compare."""
    return repr(matrix.shape).encode() + matrix.diagonal().tobytes()


def _remove(graph: onnx.GraphProto, name: str) -> None:
    index = next(i for i, tensor in enumerate(graph.initializer) if tensor.name == name)
    del graph.initializer[index]
