"""A model whose attention goes through ours, whichever of two ways its code in transformers leaves open.

Most models call the function that AttentionInterface names. Some older ones choose a class when they are
made, and one of their classes calls torch's ``scaled_dot_product_attention``: then that call is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import no_init_weights

from llm_grpc.export.attention import ATTENTION, attend


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The causal language model that transformers has for ``config``; KeyError if it has none."""
    found: type[PreTrainedModel] = AutoModelForCausalLM._model_mapping[type(config)]
    return found


def implementation_for(config: PretrainedConfig) -> str | None:
    """The attention implementation to make a model with; None if its code leaves no way in."""
    model = model_class(config)
    if model._can_set_attn_implementation():
        return ATTENTION
    return "sdpa" if model._supports_sdpa else None


@contextmanager
def hooked(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` attend through ``ATTENTION``, or through torch's function, while this is entered."""
    if model._can_set_attn_implementation():
        before = model.config._attn_implementation
        model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            model.set_attn_implementation(before)
        return
    parts, twin = model._modules, _twin(model)
    model._modules = twin._modules
    try:
        yield
    finally:
        model._modules = parts


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The model made again with the classes that call torch's function, over the same weights."""
    with no_init_weights():
        # The implementation is written into the configuration: the model keeps its own.
        twin = type(model)._from_config(deepcopy(model.config), attn_implementation="sdpa")
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.tie_weights()
    return twin.eval()


class TorchAttention(TorchFunctionMode):
    """While it is entered, which is once for each run of a model, torch's attention function is ours.

    The layers are taken in the order of their calls. Keys and values that the model repeated for its query
    heads are taken back to those that ``config`` counts.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self._num_kv_heads = getattr(config, "num_key_value_heads", None) or getattr(
            config, "num_kv_heads", 0
        )
        self._layer = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, or ours for torch's attention."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        scale: float | None = None,
        **__: Any,
    ) -> torch.Tensor:
        repeats = int(key.shape[1]) // (self._num_kv_heads or int(key.shape[1])) or 1
        out = attend(self._layer, query, key[:, ::repeats], value[:, ::repeats], scale)
        self._layer += 1
        return out.transpose(1, 2)
