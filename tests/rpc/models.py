"""A model directory without a model: a tokenizer of single bytes and a manifest, for scripted runners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from llm_grpc.manifest import MANIFEST, KvCache, Manifest, file_entry

EOS = 256
CONTEXT_TOKENS = 64


def write_model_dir(
    directory: Path,
    block_size: int | None = None,
    *,
    adds_token: bool = False,
    context_tokens: int = CONTEXT_TOKENS,
    chat_template: str | None = None,
    special_tokens: Sequence[str] = (),
) -> Path:
    """Ids are bytes (in the order of the byte-level alphabet), 256 is the end of the sequence, those after it
    are ``special_tokens``.

    With a ``block_size`` the lowering is paged. With ``adds_token`` every text begins with token 256.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", *special_tokens])
    if adds_token:
        tokenizer.post_processor = processors.TemplateProcessing("<eos> $A", None, [("<eos>", EOS)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "model.onnx").write_bytes(b"no graph: a scripted runner never opens it")
    names = ["model.onnx", "tokenizer.json"]
    if chat_template is not None:
        names.append("chat_template.jinja")
        (directory / names[-1]).write_text(chat_template)
    manifest = Manifest(
        format=2,
        name="scripted",
        architecture="scripted",
        lowering="paged" if block_size else "slots",
        weights="fp32",
        graph="model.onnx",
        tokenizer="tokenizer.json",
        chat_template=None if chat_template is None else "chat_template.jinja",
        vocabulary_size=257 + len(special_tokens),
        context_tokens=context_tokens,
        eos_token_ids=(EOS,),
        kv_cache=KvCache(num_layers=1, num_heads=1, head_dim=8, dtype="float32"),
        files={name: file_entry(directory / name) for name in names},
        versions={},
        block_size=block_size,
        special_tokens={"eos_token": "<eos>"},
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    return directory
