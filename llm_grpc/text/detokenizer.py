"""Token ids to text, one at a time, never half a character."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llm_grpc.text.tokenizer import TextTokenizer

_CONTEXT_TOKENS = 8
"""Prompt tokens that the decoder sees before the first generated one, so that the leading space of a
SentencePiece token survives."""

UNFINISHED = "\ufffd"
"""What the decoders make of bytes that are no character, or not yet."""


class Detokenizer:
    """Decodes the generated tokens of one request; special tokens give no text, but for the ``shown`` ones.

    Decoding looks at a short window of ids, because the text of a token depends on its neighbours: the
    first ``_num_settled`` of them have given the first ``_num_shown`` characters of the window's text. (The
    library's DecodeStream repeats a prompt that ends in U+FFFD, and raises where a byte-fallback decoder
    takes back a character, so it is not used.)

    Where the decoder joins bytes, a token of whole characters that comes when nothing waits is its text
    alone, which is looked up: nothing is decoded.
    """

    def __init__(
        self, tokenizer: TextTokenizer, prompt_ids: Sequence[int], shown: Collection[int] = ()
    ) -> None:
        self.shown = shown
        self._tokenizer = tokenizer
        self._window = list(prompt_ids[-_CONTEXT_TOKENS:])
        while UNFINISHED in self._decode():  # the cut may have split a character
            del self._window[0]
        self._num_settled = len(self._window)
        self._num_shown = len(self._decode())

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is complete; bytes of an unfinished character wait."""
        if token_id in self.shown:
            return self._show(token_id)
        if self._tokenizer.joins_bytes and len(self._window) == self._num_settled:
            text = self._tokenizer.text_alone(token_id)
            if not text:
                return ""
            if UNFINISHED not in text:
                self._window, self._num_settled, self._num_shown = [token_id], 1, len(text)
                return text
        self._window.append(token_id)
        text = self._decode()
        if text.endswith(UNFINISHED) or len(text) <= self._num_shown:
            return ""
        new = text[self._num_shown :]
        del self._window[: self._num_settled]
        self._num_settled = len(self._window)
        self._num_shown = len(self._decode())
        return new

    def peek(self, token_id: int) -> str:
        """The text that ``push`` would return; nothing is taken."""
        text = self._tokenizer.decode([*self._window, token_id])
        return "" if text.endswith(UNFINISHED) else text[self._num_shown :]

    def flush(self) -> str:
        """Return what waited. Bytes that never became a character are shown as U+FFFD."""
        text = self._decode()
        new = text[self._num_shown :]
        self._num_shown = len(text)
        return new

    def _show(self, token_id: int) -> str:
        text = self.flush() + self._tokenizer.name_of(token_id)
        self._window, self._num_settled, self._num_shown = [token_id], 1, 0
        return text

    def _decode(self) -> str:
        window = self._window
        return self._tokenizer.text_alone(window[0]) if len(window) == 1 else self._tokenizer.decode(window)
