"""A Hugging Face checkpoint with random weights, and what eager torch says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from tests.rpc.models import write_model_dir

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 257,
    "max_position_embeddings": 128,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": 256,
    "tie_word_embeddings": True,
}


def small_config(architecture: str, **overrides: Any) -> PretrainedConfig:
    """``SHAPE`` with ``overrides``; one that is None leaves the key to the architecture's own default."""
    changed = {**SHAPE, **overrides}
    shape = {key: value for key, value in changed.items() if value is not None or key not in overrides}
    return AutoConfig.for_model(architecture, **shape)


def save_random_model(directory: Path, architecture: str = "llama", **overrides: Any) -> Path:
    """Save a checkpoint whose weights are large enough that logits differ by more than rounding."""
    torch.manual_seed(0)
    config = small_config(architecture, **overrides)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3.0)
    model.save_pretrained(directory)
    raw = Tokenizer.from_file(str(write_model_dir(directory / "bytes") / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(directory)
    return directory


def store_as(directory: Path, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Path:
    """Round the weights of a checkpoint to ``dtype`` and save them over it; ``options`` say how."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    for path in directory.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(directory, **options)
    return directory


class Eager:
    """The same checkpoint in torch, eager attention, fp32."""

    def __init__(self, directory: Path) -> None:
        torch.set_num_threads(1)  # a model this small waits for threads more than it gains from them
        self._model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits ``[len(ids), vocabulary]``."""
        with torch.no_grad():
            logits: NDArray[np.float32] = self._model(torch.tensor([ids])).logits[0].numpy()
        return logits

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The next ``count`` most likely tokens, whatever they are."""
        out = list(ids)
        for _ in range(count):
            out.append(int(self.logits(out)[-1].argmax()))
        return out[len(ids) :]
