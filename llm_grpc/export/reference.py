"""The torch model as the reference: it computes in fp32, whatever dtype its weights are stored in.

A weight is widened where an operation uses it and dropped after that operation, so that memory holds the
largest one in fp32 and not the model. Weights that are fp32 are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

_TAKES_ROWS = frozenset({torch.Tensor.__getitem__, torch.nn.functional.embedding})
"""Operations that take parts out of a tensor: these are widened, and not the whole."""

_TAKES_SHAPE = frozenset({
    torch.Tensor.dim, torch.Tensor.size, torch.Tensor.numel, torch.Tensor.__len__,
    torch.Tensor.shape.__get__, torch.Tensor.ndim.__get__, torch.Tensor.device.__get__,
})  # fmt: skip


class _Stored(torch.Tensor):
    """A weight in its stored dtype that is fp32 to everything that is done with it."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` on fp32."""
        kwargs = kwargs or {}
        if func == torch.Tensor.dtype.__get__:
            return torch.float32
        with torch._C.DisableTorchFunctionSubclass():
            if func in _TAKES_SHAPE:
                return func(*args, **kwargs)
            if func in _TAKES_ROWS:
                return func(*_each(args, _plain), **kwargs).to(torch.float32)
            wide = {key: _each(value, _wide) for key, value in kwargs.items()}
            return func(*_each(args, _wide), **wide)


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``value`` with every stored weight in it changed; lists and tuples are looked into."""
    if isinstance(value, _Stored):
        return change(value)
    return type(value)(_each(x, change) for x in value) if type(value) in {list, tuple} else value


def _plain(stored: torch.Tensor) -> torch.Tensor:
    return stored.as_subclass(torch.Tensor)


def _wide(stored: torch.Tensor) -> torch.Tensor:
    return _plain(stored).to(torch.float32)


class _InFp32(torch.nn.Module):
    """Put before a module's own class: its code sees its weights as ``_Stored``."""

    dtype = torch.float32
    """What a PreTrainedModel says of itself, which is the dtype of a weight otherwise."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return (
            value.as_subclass(_Stored) if isinstance(value, torch.Tensor) and _is_converted(value) else value
        )


@contextmanager
def in_fp32(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` compute in fp32 while this is entered; it is for one thread, and without gradients.

    Parameters and ``state_dict`` stay as they are. Weights of every other floating-point dtype are converted,
    fp64 too.
    """
    modules = [module for module in model.modules() if _has_converted(module)]
    if modules:
        modules += [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [(module, type(module)) for module in dict.fromkeys(modules)]
    try:
        for module, kind in before:
            # transformers reads the source of a class's module.
            names = {"__module__": kind.__module__}
            module.__class__ = type(kind.__name__, (_InFp32, kind), names)
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind


def reference_logits(model: PreTrainedModel, ids: list[int]) -> NDArray[np.float32]:
    """Logits ``[len(ids), vocabulary]`` of the torch model, computed in fp32."""
    with torch.no_grad(), in_fp32(model):
        logits: NDArray[np.float32] = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return logits


def _has_converted(module: torch.nn.Module) -> bool:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(map(_is_converted, tensors))


def _is_converted(tensor: torch.Tensor) -> bool:
    return bool(tensor.is_floating_point() and tensor.dtype != torch.float32)
