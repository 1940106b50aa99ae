"""A model without its weights, for a trace that needs shapes and types alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch

_PATTERNS = 0x7F00
"""Bit patterns of 16 bits below the infinities of bf16: that many values that differ from each other."""


@contextmanager
def weightless(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While this is entered, each parameter of ``model`` is one number of ``dtype``, seen in its shape.

    A parameter that two modules share stays shared. Others differ, since the exporter makes one of parameters
    that are equal.
    """
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    numbers = count(1)
    twins: dict[int, torch.nn.Parameter] = {}
    for module, name, parameter in places:
        if id(parameter) not in twins:
            twins[id(parameter)] = _number(next(numbers), parameter.shape, dtype)
        module._parameters[name] = twins[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def _number(index: int, shape: torch.Size, dtype: torch.dtype) -> torch.nn.Parameter:
    bits = torch.tensor(index % _PATTERNS, dtype=torch.int16).view(torch.bfloat16)
    value = bits.to(dtype) if dtype != torch.float16 else bits.view(torch.float16)
    return torch.nn.Parameter(value.expand(shape), requires_grad=False)
