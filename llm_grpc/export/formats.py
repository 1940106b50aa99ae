"""Which format each linear layer gets, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from llm_grpc.export.passes.linears import Linear, groups_of
from llm_grpc.export.passes.quantise import Feedbacks, Rows
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.rounding import blocks, int8
from llm_grpc.export.rounding.choose import choose, mean_bits
from llm_grpc.export.rounding.error import blocks_error, int8_error

_MAX_ROWS = 512
"""Rows that errors are measured on."""

_INT8_LIMIT = 0.05
"""Relative output error above which a layer of an int8 model gets a scale for each block of a row."""


@dataclass(frozen=True)
class Choice:
    """A layer ``[rows, columns]`` in its format; ``error`` is relative, of its output on calibration rows."""

    name: str
    label: str
    rows: int
    columns: int
    format: str
    error: float | None


def choose_formats(
    model: ir.Model,
    recipe: Recipe,
    rows: Rows,
    feedbacks: Feedbacks,
    on_layer: Callable[[int, int], None],
) -> list[Choice]:
    """The format of each layer of a model in int8 or int4, in the order of the graph.

    With calibration rows the layers of the largest error get 8 bits in blocks: of an int8 model those beyond
    5 percent, of an int4 model as many as ``recipe.mean_bits`` bits per weight allow.

    """
    low, high = recipe.formats
    linears = [linear for group in groups_of(model) for linear in group.linears]
    errors: dict[str, float] = {}
    for index, linear in enumerate(linears):
        if (found := _error(linear, rows, feedbacks, low)) is not None:
            errors[linear.name] = found
        on_layer(index + 1, len(linears))
    sizes = {linear.name: linear.shape[0] * linear.shape[1] for linear in linears}
    limit, budget = (_INT8_LIMIT, blocks.INT8.mean_bits) if low == "int8" else (0.0, recipe.mean_bits)
    formats = dict.fromkeys(sizes, low) | choose(errors, sizes, low, high, budget, limit)
    for linear in linears:
        if formats[linear.name] == high and (found := _error(linear, rows, feedbacks, high)) is not None:
            errors[linear.name] = found
    return [
        Choice(linear.name, _label(linear), *linear.shape, formats[linear.name], errors.get(linear.name))
        for linear in linears
    ]


def _error(linear: Linear, rows: Rows, feedbacks: Feedbacks, name: str) -> float | None:
    """The relative output error of the layer in a format; None without rows."""
    seen = rows.get(linear.name)
    if seen is None or not len(seen):
        return None
    seen, weights, hints = seen[:_MAX_ROWS], linear.read(), feedbacks.of(linear.name)
    if name == "int8":
        return int8_error(seen, weights, int8.quantize(weights, hints))
    return blocks_error(seen, weights, blocks.quantize(weights, blocks.LAYOUTS[name], hints))


def _label(linear: Linear) -> str:
    """``model.layers.0.self_attn.q_proj+k_proj+v_proj``."""
    parent, _, first = linear.name.removesuffix(".weight").rpartition(".")
    others = [name.removesuffix(".weight").rpartition(".")[2] for name in linear.sources[1:]]
    return ".".join(part for part in (parent, "+".join([first, *others])) if part)


def table(choices: list[Choice]) -> Iterator[str]:
    """A line for each layer, and one for all."""
    width = max(len(choice.label) for choice in choices)
    yield f"{'layer':<{width}}  {'size':>13}  {'format':<10}  error"
    for choice in choices:
        error = "" if choice.error is None else f"{choice.error:.4f}"
        size = f"{choice.rows} x {choice.columns}"
        yield f"{choice.label:<{width}}  {size:>13}  {choice.format:<10}  {error}".rstrip()
    sizes = {choice.name: choice.rows * choice.columns for choice in choices}
    yield f"{mean_bits({choice.name: choice.format for choice in choices}, sizes):.2f} bits per weight"
