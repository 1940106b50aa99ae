"""Text to token ids, within the model's limits."""

from __future__ import annotations

import asyncio
import re
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


class PlacedToken(NamedTuple):
    """One token of a text: its id, what the vocabulary writes, and its text's place in bytes of UTF-8. Tokens
    that were added have none: ``start`` equals ``end``.
    """

    id: int
    text: str
    start: int
    end: int


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""How a tokenizer with byte fallback writes the token of one byte."""


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
        decoder = self.raw.decoder
        self._has_byte_tokens = decoder is not None and decoder.decode(["<0x41>"]) == "A"
        self._texts: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}
        added: dict[int, AddedToken] = self.raw.get_added_tokens_decoder()
        self._special = {token.content: token_id for token_id, token in added.items() if token.special}
        self._special_ids = frozenset(self._special.values())

    def check_ids(self, vocabulary_size: int) -> None:
        """Raise ManifestError unless the model has every id that a prompt may hold."""
        last = max(self.raw.get_vocab(with_added_tokens=True).values(), default=0)
        if last >= vocabulary_size:
            raise ManifestError(
                f"the tokenizer has ids up to {last}, and the model a vocabulary of {vocabulary_size}: "
                "they do not belong together"
            )

    async def encode(
        self, prompt: str, *, adds_special_tokens: bool = True, truncates: bool = False
    ) -> list[int]:
        """Return the ids of ``prompt`` with the model's special tokens, if it ``adds_special_tokens``.

        Raises:
            PromptTooLong: there are more than ``max_prompt_tokens``, and the caller ``truncates`` nothing.
            InvalidParameter: there is none; some tokenizers drop spaces or characters they do not know.
        """
        if len(prompt) <= _INLINE_CHARACTERS:
            ids: list[int] = self.raw.encode(prompt, add_special_tokens=adds_special_tokens).ids
        else:
            ids = await asyncio.to_thread(self._encode, prompt, adds_special_tokens)
        if not ids:
            raise InvalidParameter("prompt", "has 0 tokens for this model's tokenizer, and the least is 1")
        if len(ids) > self.max_prompt_tokens and not truncates:
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

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of one id whatever stands before or after; None where they depend on that."""
        data = self._bytes.get(token_id)
        if data is None and (self.joins_bytes or self._has_byte_tokens):
            data = self._token_bytes(token_id)
            if data is not None:
                self._bytes[token_id] = data
        return data

    def _token_bytes(self, token_id: int) -> bytes | None:
        token: str = self.raw.id_to_token(token_id) or ""
        if self.joins_bytes:
            if token_id in self._special_ids:
                return b""
            try:
                return bytes(_BYTES[character] for character in token)
            except KeyError:  # an added token, which is no alphabet's
                return token.encode()
        match = _BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(match[1]) if match else None

    def text(self, ids: Sequence[int], *, keep_special_tokens: bool) -> str:
        """The text of ``ids``, however many; special tokens have none, unless they are kept. For a worker
        thread.
        """
        texts: list[str] = self.raw.decode_batch([ids], skip_special_tokens=not keep_special_tokens)
        return texts[0]

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        """How many tokens ``text`` has. For a worker thread."""
        return len(self.raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0])

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[PlacedToken]:
        """The tokens of ``text``, however many, and where each of them stands. For a worker thread."""
        encoding = self.raw.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        places = _byte_places(text)
        found: list[PlacedToken] = []
        for at, token_id in enumerate(encoding.ids):
            start, end = encoding.token_to_chars(at) or (0, 0)
            found.append(PlacedToken(token_id, self.name_of(token_id), places[start], places[end]))
        return found

    def name_of(self, token_id: int) -> str:
        """The token as the vocabulary writes it; empty where the tokenizer has none of that id."""
        name: str | None = self.raw.id_to_token(token_id)
        return name or ""

    def special_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """The special tokens among ``texts``."""
        return frozenset(self._special[text] for text in texts if text in self._special)

    def _encode(self, prompt: str, adds_special_tokens: bool) -> list[int]:
        ids: list[int] = self.raw.encode_batch_fast([prompt], add_special_tokens=adds_special_tokens)[0].ids
        return ids

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self.raw.encode_batch_fast(list(texts), add_special_tokens=False)]


def _byte_level_alphabet() -> dict[str, int]:
    """The byte of each character that byte-level tokenizers write for one: what prints stands for itself,
    the others in order for U+0100 and on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_level_alphabet()


def _byte_places(text: str) -> Sequence[int]:
    """Where each character of ``text`` begins, in bytes of UTF-8, and where the last one ends."""
    if text.isascii():
        return range(len(text) + 1)
    return list(accumulate((1 + (c > "\x7f") + (c > "\u07ff") + (c > "\uffff") for c in text), initial=0))
