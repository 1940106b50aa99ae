"""A model's weights as tensors over the checkpoint's files: the system pages them in, and out again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import init_empty_weights
from transformers.modeling_utils import no_init_weights


def without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """The model with eager attention, its parameters on the meta device and its buffers fp32.

    Buffers that no checkpoint has (frequencies, scales of embeddings) are computed here. A default type of
    less precision, which ``dtype="auto"`` would set, would round them.
    """
    config.dtype = torch.float32
    with no_init_weights(), init_empty_weights():
        return AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )


def map_weights(model: PreTrainedModel, files: Iterable[Path]) -> list[str]:
    """Give ``model`` the tensors of safetensors files, each in its stored dtype, without copying them.

    Keys are renamed as transformers renames them, those the model does not know are passed over, and tied
    weights become one tensor. The files must stay as they are while the model is used.

    Returns:
        The names of ``model.state_dict()`` that no file has, sorted.

    Raises:
        ValueError: a tensor has another shape than the model's.
    """
    stored = _stored(files)
    names = model._get_key_renaming_mapping(list(stored), None, *_prefixes(model, stored))
    expected = model.state_dict()
    given = {names[key]: tensor for key, tensor in stored.items() if names.get(key) in expected}
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            found, wanted = list(tensor.shape), list(expected[name].shape)
            raise ValueError(f"{name} has shape {found}, and its configuration means {wanted}")
    model.load_state_dict(given, strict=False, assign=True)
    model.tie_weights()
    return _missing(model, set(given))


def _stored(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found


def _prefixes(model: PreTrainedModel, stored: Iterable[str]) -> tuple[bool, bool]:
    """Whether the checkpoint is one of a larger model, and whether it is one of the body alone."""
    prefix = model.base_model_prefix
    in_file = bool(prefix) and any(key.startswith(prefix) for key in stored)
    in_model = bool(prefix) and hasattr(model, prefix)
    return in_file and not in_model, in_model and not in_file


def _missing(model: PreTrainedModel, given: set[str]) -> list[str]:
    """What is neither given nor tied to something that is, nor known by the model to be computed."""
    tensors = model.state_dict(keep_vars=True)
    filled = {id(tensors[name]) for name in given}
    absent = [name for name, tensor in tensors.items() if id(tensor) not in filled]
    told, _ = model._adjust_missing_and_unexpected_keys(absent, [], False)
    return sorted({*told, *(name for name in absent if tensors[name].is_meta)})
