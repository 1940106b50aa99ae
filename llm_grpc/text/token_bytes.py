"""The bytes that each token gives a text."""

from __future__ import annotations

from llm_grpc.text.detokenizer import UNFINISHED, Detokenizer
from llm_grpc.text.tokenizer import TextTokenizer


class TokenBytes:
    """What each token gives the text of ``detokenizer``, which is told of them through this class.

    Those of all tokens, one after the other, are the text in UTF-8, where the tokens' bytes are UTF-8; the
    text has U+FFFD for those that are not. Where the tokenizer says a token's bytes they are these;
    else they are what the detokenizer lets out with it.
    """

    def __init__(self, tokenizer: TextTokenizer, detokenizer: Detokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer
        self._bytes_wait = False  # some were told that the detokenizer has not let out

    def of(self, token_id: int) -> bytes:
        """What ``token_id`` gives if it comes next."""
        if token_id in self._detokenizer.shown:
            return self._tokenizer.name_of(token_id).encode()
        data = self._tokenizer.token_bytes(token_id)
        return self._rest(self._detokenizer.peek(token_id)) if data is None else data

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is complete now."""
        text = self._detokenizer.push(token_id)
        self._bytes_wait = not text and (self._bytes_wait or bool(self._tokenizer.token_bytes(token_id)))
        return text

    def flush(self) -> tuple[str, bytes]:
        """The text that waited, and what of it is no token's bytes yet: the last one's, then."""
        text = self._detokenizer.flush()
        return text, b"" if self._tokenizer.joins_bytes else self._rest(text)

    def _rest(self, text: str) -> bytes:
        """``text`` without the U+FFFD that stand for bytes which were told."""
        return (text.lstrip(UNFINISHED) if self._bytes_wait else text).encode()
