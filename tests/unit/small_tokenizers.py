"""Real tokenizers of a few hundred tokens, made in memory."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_grpc.text.tokenizer import TextTokenizer

BOS, EOS = "<|begin|>", "<|end|>"
CORPUS = ["the cat sat on the mat. été naïve 😀 😀😀 👩‍👩‍👧 é 中文字 \n\nQ: why?\nA: because.\n"] * 20
SPACE = "\u2581"


@cache
def byte_level(max_prompt_tokens: int = 64) -> TextTokenizer:
    """A byte-level BPE: every text has ids, and tokens may end anywhere in a character."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BOS, EOS],
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return load(raw, max_prompt_tokens)


@cache
def metaspace() -> TextTokenizer:
    """Words with their space before them; the decoder drops the space of the first."""
    words = [SPACE, f"{SPACE}the", f"{SPACE}cat", f"{SPACE}sat", "s", "."]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    raw.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    raw.decoder = decoders.Metaspace()
    return load(raw)


@cache
def byte_fallback() -> TextTokenizer:
    """As Llama 2 has it: unknown characters are byte tokens, and a run of bytes is decoded as a whole."""
    pieces = ["<unk>", SPACE, *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return load(raw)


def load(raw: Tokenizer, max_prompt_tokens: int = 64) -> TextTokenizer:
    """``raw`` as the server loads it, from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        raw.save(str(path))
        return TextTokenizer(path, max_prompt_tokens)


def token_id(tokenizer: TextTokenizer, token: str) -> int:
    """The id of one token."""
    found: int | None = tokenizer.raw.token_to_id(token)
    assert found is not None, token
    return found


def decode(tokenizer: TextTokenizer, ids: list[int]) -> str:
    """The text of all ``ids`` at once, without special tokens."""
    text: str = tokenizer.raw.decode(ids, skip_special_tokens=True)
    return text
