"""Text to token ids, within the model's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from llm_grpc.errors import InvalidParameter, ManifestError, PromptTooLong

_INLINE_CHARACTERS = 4096
"""Longer prompts are tokenized in a worker thread (the library releases the GIL), so that the event loop
stays free; shorter ones take less than the hand-over."""


class TextTokenizer:
    """The model's tokenizer and the longest prompt it may make."""

    def __init__(self, path: Path, max_prompt_tokens: int) -> None:
        try:
            self.raw = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ManifestError(f"cannot read the tokenizer {path}: {error}") from error
        self.raw.no_truncation()
        self.raw.no_padding()
        self.max_prompt_tokens = max_prompt_tokens
        self.joins_bytes = isinstance(self.raw.decoder, ByteLevel)
        """Whether the text of ids is their bytes, one after the other, whatever stands before or after."""
        self._texts: dict[int, str] = {}

    def check_ids(self, vocabulary_size: int) -> None:
        """Raise ManifestError unless the model has every id that a prompt may hold."""
        last = max(self.raw.get_vocab(with_added_tokens=True).values(), default=0)
        if last >= vocabulary_size:
            raise ManifestError(
                f"the tokenizer has ids up to {last}, and the model a vocabulary of {vocabulary_size}: "
                "they do not belong together"
            )

    async def encode(self, prompt: str) -> list[int]:
        """Return the ids of ``prompt`` with the model's special tokens.

        Raises:
            PromptTooLong: there are more than ``max_prompt_tokens``.
            InvalidParameter: there is none; some tokenizers drop spaces or characters they do not know.
        """
        if len(prompt) <= _INLINE_CHARACTERS:
            ids = self._encode(prompt)
        else:
            ids = await asyncio.to_thread(self._encode, prompt)
        if not ids:
            raise InvalidParameter("prompt", "has 0 tokens for this model's tokenizer, and the least is 1")
        if len(ids) > self.max_prompt_tokens:
            raise PromptTooLong("prompt", f"has {len(ids)} tokens, and the limit is {self.max_prompt_tokens}")
        return ids

    async def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return self._encode_plain(texts)
        return await asyncio.to_thread(self._encode_plain, texts)

    def text_alone(self, token_id: int) -> str:
        """The text of one id without neighbours. Each is computed once: at most the vocabulary is kept."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.decode([token_id])
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens have none."""
        text: str = self.raw.decode(ids, skip_special_tokens=True)
        return text

    def _encode(self, prompt: str) -> list[int]:
        ids: list[int] = self.raw.encode(prompt).ids
        return ids

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.raw.encode(text, add_special_tokens=False).ids for text in texts]
