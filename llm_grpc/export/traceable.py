"""What some models do on the way that the tracer cannot follow, said in a way that it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

_VIEWS = frozenset({torch.Tensor.view, torch.Tensor.reshape, torch.reshape})

_FOUND = "_llm_grpc_found"
"""Marks the tensors that hold where a condition is true."""


class Traceable(TorchFunctionMode):
    """While it is entered, some functions of torch take another way to the same numbers.

    ``repeat_interleave`` by a number, which rotations of neighbours use, has no ONNX symbol for inputs whose
    rank the tracer lost: it becomes expand and reshape. ``nonzero`` over one flag an expert is how a mixture
    loops over the experts that some token chose, which unrolls to those of the example: it becomes all
    experts, and one that no token chose adds nothing. Without ``experts`` it becomes none of them, which is
    right for shapes only. For the same reason ``numel`` of what ``where`` found says that there is something.

    A view to sizes that were read from a tensor is traced with the arithmetic on them, a dozen nodes a layer
    that say what is known: all sizes but the number of tokens, by which the example's ``num_tokens`` differs
    from every size of the model, are constant.
    """

    def __init__(self, config: PretrainedConfig, experts: bool = True, num_tokens: int = 0) -> None:
        super().__init__()
        self._experts, self._num_tokens = experts, num_tokens
        self._num_experts = {getattr(config, key) for key in _NUM_EXPERTS if getattr(config, key, None)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, or what stands for it."""
        kwargs = kwargs or {}
        if func in {torch.repeat_interleave, torch.Tensor.repeat_interleave}:
            return _repeat_interleave(func, *args, **kwargs)
        if func in _VIEWS and self._num_tokens:
            return self._view(func, *args, **kwargs)
        if func in {torch.nonzero, torch.Tensor.nonzero} and self._is_one_flag_an_expert(args[0]):
            return torch.arange(int(args[0].shape[0]) if self._experts else 0)[:, None]
        if func is torch.Tensor.numel and getattr(args[0], _FOUND, False):
            return 1
        result = func(*args, **kwargs)
        if func is torch.where and isinstance(result, tuple):
            for indices in result:
                setattr(indices, _FOUND, True)
        return result

    def _view(self, func: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = func(x, *args, **kwargs)
        sizes = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        read = [isinstance(size, torch.Tensor) for size in sizes]
        if kwargs or not any(read):
            return result
        known = [int(size) for size in result.shape]
        tokens = [i for i, size in enumerate(known) if read[i] and size == self._num_tokens]
        if len(tokens) > 1:
            return result
        for i, size in enumerate(sizes):
            if not read[i] and (not tokens or int(size) >= 0):
                known[i] = int(size)
        for i in tokens:
            known[i] = -1
        return func(x, known)

    def _is_one_flag_an_expert(self, flags: torch.Tensor) -> bool:
        # One architecture counts a class more, for tokens that no expert takes.
        # Under the tracer a size is a tensor.
        return flags.dim() == 1 and bool({int(flags.shape[0]), int(flags.shape[0]) - 1} & self._num_experts)


def _repeat_interleave(
    func: Callable[..., Any], x: torch.Tensor, repeats: Any, dim: int | None = None, **kwargs: Any
) -> torch.Tensor:
    if not isinstance(repeats, int) or dim not in {-1, x.dim() - 1}:
        result: torch.Tensor = func(x, repeats, dim=dim, **kwargs)
        return result
    return torch.stack([x] * repeats, dim=-1).flatten(-2)
