"""LoRA adapters as PEFT saves them, made by hand, and the models that they are merged into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

Tensors = dict[str, torch.Tensor]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def matrices(checkpoint: Path, seed: int, rank: int = 4, targets: tuple[str, ...] = TARGETS) -> Tensors:
    """Random ones for the modules that end so, large enough to change what a model says."""
    generator = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for name, weight in (
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict().items()
    ):
        module = name.removesuffix(".weight")
        if module.endswith(targets):
            rows, columns = weight.shape if _is_turned(module) else weight.T.shape
            for matrix, shape in (("A", (rank, rows)), ("B", (columns, rank))):
                values = torch.randn(shape, generator=generator) * 0.3
                found[f"base_model.model.{module}.lora_{matrix}.weight"] = values
    return found


def save_adapter(directory: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """Write a PEFT directory; ``config`` goes over what PEFT writes for a plain adapter of rank 4."""
    directory.mkdir(parents=True, exist_ok=True)
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    stated: dict[str, Any] = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "auto_mapping": None,
        "base_model_name_or_path": "random-llama", "bias": "none", "corda_config": None, "eva_config": None,
        "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
        "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None,
        "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
        "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None,
        "target_modules": targets, "target_parameters": None, "task_type": "CAUSAL_LM",
        "trainable_token_indices": None, "use_dora": False, "use_qalora": False,
        "use_rslora": False,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps({**stated, **config}))
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, directory / "adapter_model.safetensors")
    return directory


def merged(checkpoint: Path, target: Path, tensors: Tensors, scale: float = 2.0) -> Path:
    """Save ``checkpoint`` with the product of the matrices, times ``scale``, added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    weights = model.state_dict()
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = tensors[name.replace("lora_A", "lora_B")]
            change = scale * (up.double() @ down.double()).float()
            weights[f"{module}.weight"] += change.T if _is_turned(module) else change
    model.save_pretrained(target)
    return target


def _is_turned(module: str) -> bool:
    """Whether the weight is ``[rows, columns]``, as GPT-2's are."""
    return module.startswith("transformer.h.")
