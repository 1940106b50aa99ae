"""Rotations of queries and keys as one node each, known by what they compute.

A trace of a rotation is about ten nodes, which ONNX Runtime does not put together. Its operator
``RotaryEmbedding`` looks positions up in a table: the table of a step is the step's own cosines and sines, a
row for each token, so that no scaling of the frequencies needs code here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch

from llm_grpc.export.rotary_form import ANGLES, Form, form_of
from llm_grpc.export.swapped import swapped

Tables = dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]
"""The rows that were taken of a tensor, and the tensor, which keeps its id."""


class _Node(torch.autograd.Function):
    """``x [1, heads, T, d]`` or ``[1, T, heads * d]``, with ``cos`` and ``sin [T, rotated / 2]``, turned.

    ``forward`` gives shapes only: the export never computes it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def symbolic(g: Any, x: Any, cos: Any, sin: Any, heads: int, part: int, neighbours: bool) -> Any:
        # One position is that of the first token: token t takes row t.
        first = g.op("Constant", value_t=torch.zeros(1, dtype=torch.int64))
        attributes = {"num_heads_i": heads, "interleaved_i": int(neighbours)}
        if part:
            attributes["rotary_embedding_dim_i"] = part
        out = g.op("com.microsoft::RotaryEmbedding", x, first, cos, sin, **attributes)
        out.setType(x.type())
        return out


def _emit(x: torch.Tensor, form: Form, tables: Tables, *angles: torch.Tensor) -> torch.Tensor:
    cos, sin = (_rows(angle, form, tables) for angle in angles)
    heads, width, rotated = int(x.shape[form.heads_at]), int(x.shape[3]), 2 * int(cos.shape[-1])
    attributes = (heads, rotated if rotated < width else 0, form.neighbours)
    heads_first = form.heads_at == 1
    if heads_first and not form.sorts and not x.transpose(1, 2).is_contiguous():
        out: torch.Tensor = _Node.apply(x, cos, sin, *attributes)
        return out
    # Heads that a transposition brought to the front go back, and the two transpositions cancel out.
    x = form.arranged(x.transpose(1, 2) if heads_first else x, (1, -1, heads * width))
    out = _Node.apply(x, cos, sin, *attributes).view(1, -1, heads, width)
    return out.transpose(1, 2) if heads_first else out


def _rows(angle: torch.Tensor, form: Form, tables: Tables) -> torch.Tensor:
    key = (id(angle), form.columns)
    if key not in tables:
        tables[key] = (form.rows(angle), angle)
    return tables[key][0]


@contextmanager
def _untraced() -> Iterator[None]:
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def _fused(plain: FunctionType, tables: Tables) -> Callable[..., Any]:
    signature = inspect.signature(plain)

    def rotate(*args: Any, **kwargs: Any) -> Any:
        if torch._C._get_tracing_state() is None:
            return plain(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        with _untraced():
            form = form_of(plain, call)
        if form is None:
            return plain(*args, **kwargs)
        angles = [call.arguments[name] for name in ANGLES]
        turned = tuple(_emit(call.arguments[name], form, tables, *angles) for name in form.rotated)
        return turned if form.returns_tuple else turned[0]

    return rotate


def _functions(model: torch.nn.Module) -> Iterator[tuple[Any, str, FunctionType]]:
    """The functions of angles in the files that the model's classes are from."""
    for name in sorted({type(module).__module__ for module in model.modules()}):
        namespace = sys.modules[name]
        for key, value in list(vars(namespace).items()):
            if isinstance(value, FunctionType) and set(ANGLES) <= set(inspect.signature(value).parameters):
                yield namespace, key, value


@contextmanager
def fused_rotary(model: torch.nn.Module) -> Iterator[None]:
    """While this is entered, a trace of ``model`` has one node for each rotation of queries or keys."""
    tables: Tables = {}
    with ExitStack() as swaps:
        for namespace, name, function in _functions(model):
            swaps.enter_context(swapped(namespace, name, _fused(function, tables)))
        yield
