"""The weights of a graph in their formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from llm_grpc.export.passes.blocks import write_blocks
from llm_grpc.export.passes.int8 import Int8, no_hints, write_embedding
from llm_grpc.export.passes.linears import Floats, groups_of
from llm_grpc.export.rounding import blocks
from llm_grpc.export.rounding.gptq import Feedback, feedback

Rows = Mapping[str, Floats]
"""Calibration: float32 ``[n, K]`` by the name of a layer, where there is any."""

MAX_FEEDBACK = 8192
"""Input features beyond which a matrix is rounded to the nearest: feedback takes 32 bytes for each pair."""


class Feedbacks:
    """What calibration says of each layer; the last answer alone is kept, for layers that share an input."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._last: tuple[int, Feedback | None] = (0, None)

    def of(self, name: str) -> Feedback | None:
        """Of the layer ``name``; None without rows, and where the matrix is too large."""
        rows = self._rows.get(name)
        if rows is None or not len(rows) or rows.shape[1] > MAX_FEEDBACK:
            return None
        if self._last[0] != id(rows):
            self._last = id(rows), feedback(rows)
        return self._last[1]

    def later(self, name: str) -> Callable[[], Feedback | None]:
        """The same, asked for when the matrix is rounded."""
        return lambda: self.of(name)


def quantise(model: ir.Model, formats: Mapping[str, str], feedbacks: Feedbacks) -> None:
    """Write each linear layer in its format: ``fp32``, ``int8``, ``blocks8`` or ``blocks4x<size>``.

    ``formats`` are by the layer's name. The table of embeddings becomes int8.
    """
    int8 = Int8(model)
    for group in groups_of(model):
        chosen = tuple(linear for linear in group.linears if formats[linear.name] == "int8")
        if chosen:
            # The table of embeddings is what a tied head is, and is looked up, not multiplied.
            is_tied = any(linear.is_transposed for linear in chosen)
            int8.write(group, chosen, no_hints if is_tied else feedbacks.later(chosen[0].name))
        for linear in group.linears:
            layout = blocks.LAYOUTS.get(formats[linear.name])
            if layout:
                write_blocks(model.graph, linear, layout, feedbacks.later(linear.name))
    write_embedding(model)
