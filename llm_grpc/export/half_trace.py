"""Arithmetic in 16 bits as torch does it: every operation in fp32, its result rounded once.

A graph has no numbers beside its tensors: a factor such as 0.7978 would be rounded to the tensor's type,
which torch does not do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from llm_grpc.export.element_type import HALF

_ARITHMETIC = frozenset(
    {f"{mark}{name}{mark}" for name in ("add", "sub", "mul", "truediv") for mark in ("", "__")}
    | {"__radd__", "__rsub__", "__rmul__", "__rtruediv__", "div", "rsub"}
)
"""Functions of two operands, one of which may be a number."""

_IN_FP32 = frozenset(
    {"elu", "gelu", "hardsigmoid", "hardswish", "mish", "__pow__", "pow", "rsqrt", "selu", "softplus"}
)
"""Functions of one operand that the exporter writes as several operators, or with numbers."""


class _HalfTrace(TorchFunctionMode):
    """While it is entered, the functions above widen their operands and round what they return."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, on fp32 where that is needed."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        half = next((x for x in args[:2] if _is_half(x)), None)
        if half is None or kwargs.get("dtype") is not None or not _is_wide(name, args, half.dtype):
            return func(*args, **kwargs)
        wide = tuple(x.float() if _is_half(x) else x for x in args)
        return func(*wide, **kwargs).to(half.dtype)


def half_trace(dtype: torch.dtype) -> AbstractContextManager[object]:
    """While this is entered, a trace of a model of ``dtype`` is what torch computes."""
    return _HalfTrace() if dtype in HALF else nullcontext()


def _is_half(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in HALF


def _is_wide(name: str, args: tuple[Any, ...], dtype: torch.dtype) -> bool:
    if name in _IN_FP32:
        return True
    return name in _ARITHMETIC and any(_is_number_beside(x, dtype) for x in args[:2])


def _is_number_beside(x: object, dtype: torch.dtype) -> bool:
    """Whether ``x`` is a number that ``dtype`` does not hold; a tensor without dimensions counts as one."""
    if isinstance(x, torch.Tensor):
        return x.dim() == 0 and x.dtype in {torch.float32, torch.float64}
    return isinstance(x, float) and float(torch.tensor(x, dtype=torch.float32).to(dtype)) != x
