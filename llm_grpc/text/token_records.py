"""What is told back about the tokens of one text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llm_grpc.engine.step_plan import TokenScore
from llm_grpc.text.detokenizer import Detokenizer
from llm_grpc.text.text_delta import TextToken, TopToken
from llm_grpc.text.token_bytes import TokenBytes
from llm_grpc.text.tokenizer import TextTokenizer


class TokenRecords:
    """Passes the tokens of one text to its detokenizer and keeps count of the bytes that they give."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt_ids: Sequence[int],
        *,
        with_text: bool,
        shown: Collection[int] = (),
    ) -> None:
        detokenizer = Detokenizer(tokenizer, prompt_ids, shown)
        self._bytes = TokenBytes(tokenizer, detokenizer)
        self._push = self._bytes.push if with_text else detokenizer.push
        self._with_text = with_text
        self._offset = 0

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is complete now."""
        return self._push(token_id)

    def flush(self, records: list[TextToken]) -> str:
        """The text that waited; what of it no token has told yet goes to the last of ``records``."""
        text, rest = self._bytes.flush()
        if rest and records and self._with_text:
            records[-1] = records[-1]._replace(text=records[-1].text + rest)
            self._offset += len(rest)
        return text

    def record(self, token_id: int, score: TokenScore | None, *, is_shown: bool = True) -> TextToken:
        """The record of the token that is pushed next; ``is_shown`` unless it gives no text."""
        if not self._with_text:
            top = tuple(TopToken(*each) for each in score.top) if score else ()
            return TextToken(token_id, score.logprob if score else None, top)
        top = tuple(TopToken(i, logprob, self._bytes.of(i)) for i, logprob in score.top) if score else ()
        text, offset = self._bytes.of(token_id) if is_shown else b"", self._offset
        self._offset += len(text)
        return TextToken(token_id, score.logprob if score else None, top, text, offset)


def records_of(
    tokenizer: TextTokenizer, ids: Sequence[int], scores: Sequence[TokenScore | None], *, with_text: bool
) -> tuple[TextToken, ...]:
    """The records of a whole text, the tokens of which have ``scores``."""
    texts, records = TokenRecords(tokenizer, (), with_text=with_text), list[TextToken]()
    for token_id, score in zip(ids, scores, strict=True):
        records.append(texts.record(token_id, score))
        texts.push(token_id)
    texts.flush(records)
    return tuple(records)
