"""Text to token ids, within the model's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel

from llm_grpc.errors import InvalidParameter, ManifestError, PromptTooLong

_INLINE_CHARACTERS = 4096
"""Longer prompts are tokenized in a worker thread, so that the event loop stays free; shorter ones take less
than the hand-over. Only the library's methods for batches release the GIL, hence batches of one. Its lists of
all tokens' texts and places are made under it, a million in a second: those are asked for one by one."""


class TextToken(NamedTuple):
    """One token of a text: its id, what the vocabulary writes, and its text's place in bytes of UTF-8. Tokens
    that were added have none: ``start`` equals ``end``.
    """

    id: int
    text: str
    start: int
    end: int


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
        added: dict[int, AddedToken] = self.raw.get_added_tokens_decoder()
        self._special = {token.content: token_id for token_id, token in added.items() if token.special}

    def check_ids(self, vocabulary_size: int) -> None:
        """Raise ManifestError unless the model has every id that a prompt may hold."""
        last = max(self.raw.get_vocab(with_added_tokens=True).values(), default=0)
        if last >= vocabulary_size:
            raise ManifestError(
                f"the tokenizer has ids up to {last}, and the model a vocabulary of {vocabulary_size}: "
                "they do not belong together"
            )

    async def encode(self, prompt: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``prompt``, with the model's special tokens unless it has them already.

        Raises:
            PromptTooLong: there are more than ``max_prompt_tokens``.
            InvalidParameter: there is none; some tokenizers drop spaces or characters they do not know.
        """
        if len(prompt) <= _INLINE_CHARACTERS:
            ids: list[int] = self.raw.encode(prompt, add_special_tokens=add_special_tokens).ids
        else:
            ids = await asyncio.to_thread(self._encode, prompt, add_special_tokens)
        if not ids:
            raise InvalidParameter("prompt", "has 0 tokens for this model's tokenizer, and the least is 1")
        if len(ids) > self.max_prompt_tokens:
            raise PromptTooLong("prompt", f"has {len(ids)} tokens, and the limit is {self.max_prompt_tokens}")
        return ids

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

    def text(self, ids: Sequence[int], *, keep_special_tokens: bool) -> str:
        """The text of ``ids``, however many; special tokens have none, unless they are kept. For a worker
        thread.
        """
        texts: list[str] = self.raw.decode_batch([ids], skip_special_tokens=not keep_special_tokens)
        return texts[0]

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        """How many tokens ``text`` has. For a worker thread."""
        return len(self.raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0])

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[TextToken]:
        """The tokens of ``text``, however many, and where each of them stands. For a worker thread."""
        encoding = self.raw.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        places = _byte_places(text)
        found: list[TextToken] = []
        for at, token_id in enumerate(encoding.ids):
            start, end = encoding.token_to_chars(at) or (0, 0)
            found.append(TextToken(token_id, self.name_of(token_id), places[start], places[end]))
        return found

    def name_of(self, token_id: int) -> str:
        """The token as the vocabulary writes it; empty where the tokenizer has none of that id."""
        name: str | None = self.raw.id_to_token(token_id)
        return name or ""

    def special_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """The special tokens among ``texts``."""
        return frozenset(self._special[text] for text in texts if text in self._special)

    def _encode(self, prompt: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.raw.encode_batch_fast([prompt], add_special_tokens=add_special_tokens)[0].ids
        return ids


def _byte_places(text: str) -> Sequence[int]:
    """Where each character of ``text`` begins, in bytes of UTF-8, and where the last one ends."""
    if text.isascii():
        return range(len(text) + 1)
    return list(accumulate((1 + (c > "\x7f") + (c > "\u07ff") + (c > "\uffff") for c in text), initial=0))
