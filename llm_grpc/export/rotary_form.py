"""Which rotation a function computes, found by comparing it with all that ONNX Runtime's operator does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import BoundArguments
from itertools import product
from typing import Any

import torch

ANGLES = ("cos", "sin")
"""How transformers names the two arguments that make a function one to look at."""

_TOLERANCE = 1e-5
_RANK = 4
"""Queries and keys have a batch, heads, tokens and columns."""
_COLUMNS = ("all", "halves", "neighbours")


@dataclass(frozen=True)
class Form:
    """A rotation of the arguments ``rotated`` by an angle for each pair of columns."""

    rotated: tuple[str, ...]
    returns_tuple: bool
    columns: str
    """Where the angles stand: in ``all`` columns of the cosines, in the first of two equal ``halves``, or in
    the first of every two equal ``neighbours``."""
    neighbours: bool
    """Pairs are neighbours in the argument, not a column of each half."""
    sorts: bool
    """Neighbours in the argument are sorted into halves, and stay there."""
    heads_at: int
    """1 for ``[1, heads, T, d]``, 2 for ``[1, T, heads, d]``."""

    def rows(self, angle: torch.Tensor) -> torch.Tensor:
        """``[T, pairs]`` of ``angle [..., T, columns]``."""
        width = int(angle.shape[-1])
        angle = angle.reshape(-1, width)
        if self.columns == "halves":
            return angle[:, : width // 2]
        return angle[:, ::2] if self.columns == "neighbours" else angle

    def arranged(self, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """``x`` in ``shape``, each of its rows as the operator takes it."""
        if self.sorts:
            x = x.reshape(-1, int(x.shape[-1]) // 2, 2).transpose(1, 2)
        return x.reshape(shape)

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """What the operator computes."""
        cos, sin = (self.rows(angle).unsqueeze(self.heads_at - 1) for angle in (cos, sin))
        turned, rest = self.arranged(x, tuple(x.shape)).tensor_split([2 * cos.shape[-1]], dim=-1)
        if self.neighbours:
            a, b = turned[..., ::2], turned[..., 1::2]
        else:
            a, b = turned.chunk(2, dim=-1)
        pair = (a * cos - b * sin, b * cos + a * sin)
        mixed = torch.stack(pair, -1).flatten(-2) if self.neighbours else torch.cat(pair, -1)
        return torch.cat((mixed, rest), -1)


def form_of(plain: Callable[..., Any], call: BoundArguments) -> Form | None:
    """The one form that agrees with ``plain`` on random values and on the angles of ``call``.

    None where no form agrees, or several do: then the angles do not tell where they stand.
    """
    cos, sin = (call.arguments.get(name) for name in ANGLES)
    if not isinstance(cos, torch.Tensor) or not isinstance(sin, torch.Tensor) or cos.shape != sin.shape:
        return None
    rotated = {
        name: value.shape
        for name, value in call.arguments.items()
        if isinstance(value, torch.Tensor) and value.dim() == _RANK and name not in ANGLES
        if value.dtype == cos.dtype == sin.dtype
    }
    random = torch.Generator().manual_seed(0)
    tried = {name: torch.randn(shape, generator=random) for name, shape in rotated.items()}
    cos, sin = cos.detach().float(), sin.detach().float()
    ours = BoundArguments(call.signature, OrderedDict({**call.arguments, **tried, "cos": cos, "sin": sin}))
    found = plain(*ours.args, **ours.kwargs)
    wanted = found if isinstance(found, tuple) else (found,)
    if not tried or len(wanted) != len(tried):
        return None
    forms = [
        form
        for form in _forms(tuple(tried), isinstance(found, tuple), int(cos.shape[-1]))
        if all(_agrees(form, *pair, cos, sin) for pair in zip(tried.values(), wanted, strict=True))
    ]
    return forms[0] if len(forms) == 1 else None


def _forms(rotated: tuple[str, ...], returns_tuple: bool, width: int) -> Iterator[Form]:
    for columns, neighbours, sorts, heads_at in product(_COLUMNS, (False, True), (False, True), (1, 2)):
        if not (neighbours and sorts) and (columns == "all" or width % 2 == 0):
            yield Form(rotated, returns_tuple, columns, neighbours, sorts, heads_at)


def _agrees(form: Form, x: torch.Tensor, turned: Any, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    tokens, pairs = form.rows(cos).shape
    one, width = x.shape[0], x.shape[3]
    if one != 1 or x.shape[3 - form.heads_at] != tokens or width < 2 * pairs or (form.sorts and width % 2):
        return False
    if not isinstance(turned, torch.Tensor) or turned.shape != x.shape:
        return False
    return bool(torch.allclose(turned.float(), form(x, cos, sin), rtol=_TOLERANCE, atol=_TOLERANCE))
