"""The checkpoint that every contestant gets: the shape of Qwen2.5-0.5B, random weights, a small tokenizer.

Speed does not depend on what the weights say, so nothing has to be downloaded and everybody can repeat it.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 896, 24, 14, 2, 64
INTERMEDIATE, VOCABULARY = 4864, 151_936
BODY_WEIGHTS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_HEADS * HEAD_DIM + 3 * HIDDEN * INTERMEDIATE)
"""Weights of all linear layers but the output projection."""

HEAD_WEIGHTS = VOCABULARY * HIDDEN
"""Weights of the output projection, which is the table of embeddings."""

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = 2
"""End of sequence and padding; MLServer takes an id of 0 for none and then has no batches."""

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "eos_token_id": END,
    "pad_token_id": END,
    "torch_dtype": "bfloat16",
}
SEED = 0
TOKENIZER_SIZE = 8000


def make_checkpoint(directory: Path) -> None:
    """Write config, tokenizer and weights as Hugging Face's libraries save them."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", CONFIG)
    generation = {"eos_token_id": END, "pad_token_id": END, "do_sample": False}
    _write_json(directory / "generation_config.json", generation)
    _write_tokenizer(directory)
    _write_weights(directory / "model.safetensors")


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        for name, shape in _layer_shapes():
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (HIDDEN,)


def _layer_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    query, key = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for name, width in (("q", query), ("k", key), ("v", key)):
        yield f"self_attn.{name}_proj.weight", (width, HIDDEN)
        yield f"self_attn.{name}_proj.bias", (width,)
    yield "self_attn.o_proj.weight", (HIDDEN, query)
    for name in ("gate", "up"):
        yield f"mlp.{name}_proj.weight", (INTERMEDIATE, HIDDEN)
    yield "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "input_layernorm.weight", (HIDDEN,)
    yield "post_attention_layernorm.weight", (HIDDEN,)


def _write_weights(path: Path) -> None:
    """The format of safetensors: the length of a header, the header in JSON, the values in its order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    rng = np.random.default_rng(SEED)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes():
            file.write(_values(name, shape, rng).tobytes())


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint16]:
    if "norm" in name:
        return _bfloat16(np.ones(shape, np.float32))
    return _bfloat16(rng.standard_normal(shape, np.float32) * np.float32(CONFIG["initializer_range"]))


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded; numpy has no type for it."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    _write_json(directory / "tokenizer.json", _readable_by_all(json.loads(tokenizer.to_str())))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32768}
    special = {"eos_token": SPECIAL_TOKENS[END], "pad_token": SPECIAL_TOKENS[END]}
    _write_json(directory / "tokenizer_config.json", settings | special)
    _write_json(directory / "special_tokens_map.json", special)


def _readable_by_all(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Merges as one string each: older versions of tokenizers know no other form."""
    model = tokenizer["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokenizer | {"model": model | {"merges": merges}}


def sentences(num_sentences: int = 20_000, num_words: int = 12_000) -> Iterator[str]:
    """Sentences of made-up words, some frequent and most rare, as in any language."""
    rng = random.Random(SEED)
    words = [
        "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 5)))
        for _ in range(num_words)
    ]
    for _ in range(num_sentences):
        picked = [words[int(num_words * rng.random() ** 2)] for _ in range(12)]
        yield " ".join(picked).capitalize() + "."


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
