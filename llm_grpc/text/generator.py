"""From prompt text to generated text: admission, tokenizing, the engine's tokens, text, stop strings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from llm_grpc.engine.async_engine import AsyncEngine
from llm_grpc.engine.request import TokenEvent
from llm_grpc.errors import InvalidParameter
from llm_grpc.metrics import Metrics, RequestClock
from llm_grpc.sampling_params import FinishReason, SamplingParams
from llm_grpc.text.admission import Admission
from llm_grpc.text.detokenizer import Detokenizer
from llm_grpc.text.stop_strings import StopStringMatcher
from llm_grpc.text.text_request import AnswerOptions, TextRequest
from llm_grpc.text.tokenizer import TextTokenizer


class TextDelta(NamedTuple):
    """What came since the previous delta; ``tokens`` where the request asked for them. The other fields are
    set on the last one alone.
    """

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stop_string: str | None = None
    stop_token_id: int | None = None
    cached_tokens: int = 0
    tokens: tuple[int, ...] = ()


def joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """The whole answer: the last of ``deltas`` with the text and the tokens of all."""
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return deltas[-1]._replace(text="".join(delta.text for delta in deltas), tokens=tokens)


class TextGenerator:
    """Serves text from one model. Lives on the event loop; all the state of a request is its coroutine's.

    ``max_request_tokens`` is what the cache has memory for, where that is less than the model's context.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        engine: AsyncEngine,
        admission: Admission,
        metrics: Metrics,
        max_request_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self._admission = admission
        self._metrics = metrics
        self._max_request_tokens = max_request_tokens

    async def generate(self, request: TextRequest) -> AsyncGenerator[TextDelta, None]:
        """Yield the text of one request as it is generated; the last delta carries the finish reason.

        A delta without text is yielded where it is the last or where the request asked for tokens.

        Closing or cancelling the iterator frees the request's slot within one engine step.

        Raises:
            QueueFull: as many requests run and wait as the server admits.
            PromptTooLong: the prompt has more tokens than the model takes.
            AdapterNotFound: the adapter was unloaded before this began.
            InvalidParameter: the prompt and what is asked for together never fit the memory of the cache.
            EngineFailed: a run of the model failed.
        """
        prompt, params = request.prompt, request.params
        with self._admission.permit():
            clock = RequestClock(self._metrics)
            prompt_ids = await self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            self._check_memory(len(prompt_ids), params)
            clock.prompt(len(prompt_ids))
            text = _Text(Detokenizer(self._tokenizer, prompt_ids), params, request.options)
            async with aclosing(
                self._engine.generate(prompt_ids, params, adapter=request.adapter)
            ) as batches:
                async for events in batches:
                    delta = text.push(events)
                    if text.has_begun and not params.cache_disabled:
                        clock.looked_up(len(prompt_ids), text.cached_tokens)
                    clock.tokens(text.num_new_tokens)
                    if delta.finish_reason:
                        clock.finished(delta.finish_reason)
                    if delta.text or delta.finish_reason or delta.tokens:
                        yield delta
                    if delta.finish_reason:
                        return

    def _check_memory(self, num_prompt: int, params: SamplingParams) -> None:
        limit = self._max_request_tokens
        if limit is not None and params.max_tokens_asked and num_prompt + params.max_tokens > limit:
            raise InvalidParameter(
                "max_tokens",
                f"is {params.max_tokens} after a prompt of {num_prompt} tokens, and the limit is {limit} "
                "tokens in all, which is what the cache has memory for",
            )


class _Text:
    """Turns the token events of one request into deltas."""

    def __init__(self, detokenizer: Detokenizer, params: SamplingParams, options: AnswerOptions) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStringMatcher(params.stop_strings)
        self._returns_tokens = options.tokens
        self._num_tokens = 0
        self.num_new_tokens = 0
        self.cached_tokens = 0

    @property
    def has_begun(self) -> bool:
        """Whether the events that were pushed last are the first."""
        return self._num_tokens == self.num_new_tokens

    def push(self, events: list[TokenEvent]) -> TextDelta:
        """Take at least one event; what comes after the end of the text is passed over."""
        parts: list[str] = []
        tokens: list[int] = []
        for self.num_new_tokens, event in enumerate(events, start=1):
            self._num_tokens += 1
            self.cached_tokens += event.cached_tokens
            tokens.append(event.token_id)
            reason, stop_string = event.finish_reason, None
            if reason is not FinishReason.EOS:
                stop_string = self._stops.push(self._detokenizer.push(event.token_id), parts)
            if reason and stop_string is None:
                stop_string = self._stops.push(self._detokenizer.flush(), parts)
                if stop_string is None:
                    self._stops.flush(parts)
            if stop_string is not None:
                reason = FinishReason.STOP
            if reason:
                return self._last("".join(parts), reason, stop_string, tokens)
        return TextDelta("".join(parts), tokens=self._asked(tokens))

    def _asked(self, tokens: list[int]) -> tuple[int, ...]:
        return tuple(tokens) if self._returns_tokens else ()

    def _last(self, text: str, reason: FinishReason, stop_string: str | None, tokens: list[int]) -> TextDelta:
        return TextDelta(
            text=text,
            finish_reason=reason,
            prompt_tokens=self._detokenizer.num_prompt_tokens,
            completion_tokens=self._num_tokens,
            stop_string=stop_string,
            stop_token_id=tokens[-1] if reason is FinishReason.EOS else None,
            cached_tokens=self.cached_tokens,
            tokens=self._asked(tokens),
        )
