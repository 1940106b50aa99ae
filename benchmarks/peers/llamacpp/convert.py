"""The checkpoint as GGUF: ``python convert.py CHECKPOINT DIRECTORY q8_0|q4_0``.

As llama.cpp's own tools would write it: norms and biases in float32, and the embeddings of a q4_0
file in q8_0, for their rows are no multiple of 256 and q6_K, which is taken otherwise, needs that.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def main(checkpoint: Path, directory: Path, precision: str) -> None:
    """Write ``directory/model.gguf``."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    directory.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(directory / "model.gguf", "qwen2")
    _add_shape(writer, config)
    _add_tokenizer(writer, checkpoint, config["vocab_size"])
    quantisation, file_type = TYPES[precision]
    writer.add_file_type(file_type)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, values in _tensors(checkpoint / "model.safetensors"):
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        _add_tensor(writer, new_name, values, quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, size: int) -> None:
    model = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    unused = [f"[PAD{i}]" for i in range(len(tokens), size)]
    types = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * len(unused)
    types[:3] = [gguf.TokenType.CONTROL] * 3
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens + unused)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: Any, quantisation: Any) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    if name.startswith("token_embd"):
        quantisation = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(values, quantisation), raw_dtype=quantisation)


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor as float32; numpy has no bfloat16, so its bits become the upper half of a float32's."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__")
    data = np.memmap(path, np.uint16, "r", offset=8 + size) if size % 2 == 0 else _unaligned(path, 8 + size)
    for name, entry in header.items():
        start, end = (offset // 2 for offset in entry["data_offsets"])
        values = (data[start:end].astype(np.uint32) << 16).view(np.float32)
        yield name, values.reshape(entry["shape"])


def _unaligned(path: Path, offset: int) -> Any:
    return np.fromfile(path, np.uint16, offset=offset)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
