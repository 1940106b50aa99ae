"""Root mean square norms as one node each, known by what they compute.

A trace of a norm is about eight nodes. ONNX Runtime has an operator for all of them, which it lists in
ONNX's own domain though ONNX has it not: ``SimplifiedLayerNormalization``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from llm_grpc.export.swapped import swapped

_SHAPES = ((1, 4), (1, 2, 4))
"""Tokens, and tokens of heads: what a norm is tried on, before the dimension that it is over."""
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class RmsNorm:
    """``x / sqrt(mean(x^2) + epsilon) * (weight + offset)`` over the last dimension."""

    weight: str
    """The parameter's name."""
    offset: float
    epsilon: float

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The formula."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * (weight + self.offset)


@torch.no_grad()
def recognised(module: torch.nn.Module) -> RmsNorm | None:
    """The formula that ``module`` computes, if it is one of these.

    It is tried on weights of our own, so its parameters may hold anything. Its epsilon may be any number that
    it keeps: only the right one agrees on inputs that are as small.
    """
    parameters = list(module.named_parameters(recurse=False))
    if len(parameters) != 1 or parameters[0][1].dim() != 1 or next(module.children(), None) is not None:
        return None
    name, parameter = parameters[0]
    numbers = {value for value in vars(module).values() if isinstance(value, float) and 0 < value < 1}
    found = (RmsNorm(name, offset, epsilon) for epsilon in sorted(numbers) for offset in (0.0, 1.0))
    return next((norm for norm in found if _agrees(module, norm, int(parameter.shape[0]))), None)


def _agrees(module: torch.nn.Module, norm: RmsNorm, width: int) -> bool:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(width, generator=random)
    # One row where epsilon is half of the sum, one where it is a little of it, two where it is nothing.
    sizes = torch.tensor([norm.epsilon**0.5, 3 * norm.epsilon**0.5, 1.0, 30.0])[:, None]
    for shape in _SHAPES:
        x = torch.randn(*shape, width, generator=random) * sizes
        try:
            found = functional_call(module, {norm.weight: weight}, (x,))
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        if not isinstance(found, torch.Tensor) or found.shape != x.shape:
            return False
        if not torch.allclose(found.float(), norm(x, weight), rtol=_TOLERANCE, atol=_TOLERANCE):
            return False
    return True


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        return norm(x.float(), scale.float() - norm.offset).to(x.dtype).contiguous()

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, norm: RmsNorm) -> Any:
        out = g.op(
            "SimplifiedLayerNormalization", x, scale, axis_i=-1, epsilon_f=norm.epsilon, stash_type_i=1
        )
        out.setType(x.type())
        return out


def _fused(module: torch.nn.Module, norm: RmsNorm) -> Callable[..., Any]:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        weight = getattr(module, norm.weight)
        # The node takes one type. With further arguments, such as a gate, this is another formula.
        if kwargs or len(args) != 1 or args[0].dtype != weight.dtype:
            return plain(*args, **kwargs)
        if not norm.offset:
            return _Node.apply(args[0], weight, norm)
        # In 16 bits the sum would lose what the weight is about, so that models compute it in fp32.
        return _Node.apply(args[0].float(), weight.float() + norm.offset, norm).to(args[0].dtype)

    return forward


@contextmanager
def fused_norms(model: torch.nn.Module) -> Iterator[None]:
    """While this is entered, a trace of ``model`` has one node for each root mean square norm."""
    with ExitStack() as swaps:
        for module in model.modules():
            norm = recognised(module)
            if norm is not None:
                swaps.enter_context(swapped(module, "forward", _fused(module, norm)))
        yield
