"""The text of one sequence, made from the engine's tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llm_grpc.engine.request import TokenEvent
from llm_grpc.sampling_params import FinishReason, SamplingParams
from llm_grpc.text.stop_strings import StopStringMatcher
from llm_grpc.text.text_delta import TextDelta, TextToken
from llm_grpc.text.text_request import AnswerOptions
from llm_grpc.text.token_records import TokenRecords
from llm_grpc.text.tokenizer import TextTokenizer


class SequenceText:
    """Turns the token events of sequence ``index`` into deltas. ``shown`` special tokens have texts."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        options: AnswerOptions,
        index: int = 0,
        shown: Collection[int] = (),
    ) -> None:
        self._records = TokenRecords(tokenizer, prompt_ids, with_text=options.token_text, shown=shown)
        self._stops = StopStringMatcher(params.stop_strings, includes_stop=params.include_stop)
        self._num_prompt_tokens = len(prompt_ids)
        self._params = params
        self._returns_tokens = options.tokens
        self._index = index
        self._num_tokens = 0
        self.num_new_tokens = 0
        self.cached_tokens = 0

    @property
    def has_begun(self) -> bool:
        """Whether the events that were pushed last are the first."""
        return 0 < self._num_tokens == self.num_new_tokens

    def cancel(self) -> TextDelta:
        """End the text where it is, with what was held back."""
        self.num_new_tokens = 0
        parts: list[str] = []
        tokens: list[TextToken] = []
        is_early = self._num_tokens <= self._params.min_tokens
        if self._stops.push(self._records.flush(tokens), parts, is_early=is_early) is None:
            self._stops.flush(parts)
        return self._end("".join(parts), tokens)._replace(finish_reason=FinishReason.CANCELLED)

    def push(self, events: Sequence[TokenEvent]) -> TextDelta:
        """Take at least one event; what comes after the end of the text is passed over."""
        parts: list[str] = []
        tokens: list[TextToken] = []
        for self.num_new_tokens, event in enumerate(events, start=1):
            self._num_tokens += 1
            self.cached_tokens += event.cached_tokens
            stop_string = self._take(event, parts, tokens)
            if event.finish_reason or stop_string is not None:
                return self._last(event, parts, tokens, stop_string)
        return TextDelta("".join(parts), self._index, tuple(tokens))

    def _take(self, event: TokenEvent, parts: list[str], tokens: list[TextToken]) -> str | None:
        """Add one token to the text and to ``tokens``; returns the stop string that it completes."""
        is_shown = self._is_shown(event)
        if self._returns_tokens:
            tokens.append(self._records.record(event.token_id, event.score, is_shown=is_shown))
        is_early = self._num_tokens <= self._params.min_tokens
        stop_string = None
        if is_shown:
            text = self._records.push(event.token_id)
            stop_string = self._stops.push(text, parts, is_early=is_early)
        if event.finish_reason and stop_string is None:
            text = self._records.flush(tokens)
            stop_string = self._stops.push(text, parts, is_early=is_early)
            if stop_string is None:
                self._stops.flush(parts)
        return stop_string

    def _is_shown(self, event: TokenEvent) -> bool:
        """Whether the token gives the text what it stands for: what ends the text does not."""
        if event.finish_reason is FinishReason.EOS:
            return False
        return self._params.include_stop or not self._is_stop_token(event)

    def _is_stop_token(self, event: TokenEvent) -> bool:
        return event.finish_reason is FinishReason.STOP and event.token_id in self._params.stop_token_ids

    def _last(
        self, event: TokenEvent, parts: list[str], tokens: list[TextToken], stop_string: str | None
    ) -> TextDelta:
        ended_by_token = event.finish_reason is FinishReason.EOS or self._is_stop_token(event)
        return self._end("".join(parts), tokens)._replace(
            finish_reason=event.finish_reason if stop_string is None else FinishReason.STOP,
            stop_string=stop_string,
            stop_token_id=event.token_id if ended_by_token and stop_string is None else None,
        )

    def _end(self, text: str, tokens: list[TextToken]) -> TextDelta:
        """The last delta, but for why it is the last."""
        return TextDelta(
            text=text,
            index=self._index,
            tokens=tuple(tokens),
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_tokens=self.cached_tokens,
            seed=self._params.seed,
        )
