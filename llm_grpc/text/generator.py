"""From prompt text to generated text: admission, tokenizing, the engine's tokens, text, stop strings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace

from llm_grpc.engine.async_engine import AsyncEngine
from llm_grpc.engine.request import TokenEvent
from llm_grpc.errors import InvalidParameter
from llm_grpc.metrics import ModelMetrics, RequestClock
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.text.admission import Admission
from llm_grpc.text.cancellation import until_cancelled
from llm_grpc.text.merge import merged
from llm_grpc.text.prompt_info import is_asked, prompt_info
from llm_grpc.text.sequence_text import SequenceText
from llm_grpc.text.text_delta import TextDelta
from llm_grpc.text.text_request import TextConstraint, TextRequest
from llm_grpc.text.tokenizer import TextTokenizer

_NUM_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that holds its permits: its prompt without the ``num_truncated`` first tokens, and the number
    of the engine's group that its sequences are, 0 where there is one alone.
    """

    request: TextRequest
    admitted_s: float
    prompt_ids: Sequence[int]
    num_truncated: int
    group: int

    def params_of(self, index: int) -> SamplingParams:
        """What sequence ``index`` asks of the engine. The prompt is scored with the first one alone."""
        params = self.request.params
        if index == 0:
            return params
        return replace(params, seed=(params.seed + index) % _NUM_SEEDS, num_prompt_logprobs=None)


class TextGenerator:
    """Serves text from one model. Lives on the event loop; all the state of a request is its coroutine's.

    ``max_request_tokens`` is what the cache has memory for, where that is less than the model's context.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        engine: AsyncEngine,
        admission: Admission,
        metrics: ModelMetrics,
        max_request_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self.admission = admission
        self._metrics = metrics
        self._max_request_tokens = max_request_tokens

    async def generate(
        self, request: TextRequest, *, is_admitted: bool = False
    ) -> AsyncGenerator[TextDelta, None]:
        """Yield the text of one request as it is generated: the last delta of each sequence carries its
        finish reason, the first of all has index 0 where it carries ``prompt_info``.

        A delta without text is yielded where it is the last or holds something else that is asked for. Where
        the request is cancelled, the last ones have the text that was held back. Who ``is_admitted`` holds
        the permits of ``admission`` already.

        Closing or cancelling the iterator frees the request's slots within one engine step.

        Raises:
            QueueFull: as many sequences run and wait as the server admits.
            PromptTooLong: the prompt has more tokens than the model takes.
            AdapterNotFound: the adapter was unloaded before this began.
            InvalidParameter: the prompt and what is asked for together never fit the memory of the cache;
                or the constraint became too complex.
            EngineFailed: a run of the model failed.
        """
        with nullcontext() if is_admitted else self.admission.permit(request.num_sequences):
            admitted = await self._admitted(request, self._metrics.clock())
            sequences = [self._sequence(admitted, index) for index in range(request.num_sequences)]
            one, *others = sequences
            all_of_them = merged(sequences, first_leads=is_asked(request)) if others else one
            async with aclosing(all_of_them) as deltas:
                async for delta in deltas:
                    yield delta

    async def _admitted(self, request: TextRequest, admitted_s: float) -> _Admitted:
        prompt, most = request.prompt, request.truncate_tokens
        if isinstance(prompt, str):
            prompt = await self._tokenizer.encode(
                prompt, adds_special_tokens=request.adds_special_tokens, truncates=most > 0
            )
        kept = prompt[-most:]  # all where it is 0
        self._check_memory(len(kept), request.params)
        self._metrics.prompt_tokens.inc(len(kept))
        group = self._engine.new_group() if request.num_sequences > 1 else 0
        return _Admitted(request, admitted_s, kept, len(prompt) - len(kept), group)

    async def _sequence(self, admitted: _Admitted, index: int) -> AsyncGenerator[TextDelta, None]:
        """Yield the text of one sequence; the engine knows of it once the first delta is asked for."""
        request, ids, params = admitted.request, admitted.prompt_ids, admitted.params_of(index)
        clock = RequestClock(self._metrics, admitted.admitted_s)
        text = SequenceText(self._tokenizer, ids, params, request.options, index, request.shown_tokens)
        is_scored = params.num_prompt_logprobs is not None and len(ids) > 1
        constraint = request.constraint() if request.constraint else None
        events_of: AsyncGenerator[Sequence[TokenEvent], None] = self._engine.generate(
            ids,
            params,
            constraint=constraint,
            group=admitted.group,
            first_score=1 if is_scored else None,
            priority=request.priority,
            adapter=request.adapter,
        )
        if request.cancellation:
            events_of = until_cancelled(events_of, request.cancellation)
        async with aclosing(events_of) as batches:
            async for events in batches:
                delta = text.push(events) if events else text.cancel()
                if events:
                    clock.tokens(text.num_new_tokens)
                if text.has_begun:
                    delta = await self._begun(admitted, delta, events[0], clock)
                if delta.finish_reason:
                    delta = _ended(request, delta, constraint, clock)
                if delta.says_something:
                    yield delta
                if delta.finish_reason:
                    return

    async def _begun(
        self, admitted: _Admitted, delta: TextDelta, event: TokenEvent, clock: RequestClock
    ) -> TextDelta:
        """The first delta of a sequence, with what the request asks about its prompt if it is the first."""
        clock.begun(event.begun_s)
        if not admitted.request.params.cache_disabled:
            clock.looked_up(len(admitted.prompt_ids), event.cached_tokens)
        if delta.index or not is_asked(admitted.request):
            return delta
        info = await prompt_info(
            admitted.request,
            self._tokenizer,
            admitted.prompt_ids,
            admitted.num_truncated,
            event.prompt_scores,
        )
        return delta._replace(prompt_info=info)

    def _check_memory(self, num_prompt: int, params: SamplingParams) -> None:
        limit = self._max_request_tokens
        if limit is not None and params.max_tokens_asked and num_prompt + params.max_tokens > limit:
            raise InvalidParameter(
                "max_tokens",
                f"is {params.max_tokens} after a prompt of {num_prompt} tokens, and the limit is {limit} "
                "tokens in all, which is what the cache has memory for",
            )


def _ended(
    request: TextRequest, delta: TextDelta, constraint: TextConstraint | None, clock: RequestClock
) -> TextDelta:
    """The last delta of a sequence, with its times and what it was computed with.

    Raises:
        InvalidParameter: it is the last one because the constraint became too complex.
    """
    if constraint:
        constraint.check()
    if delta.finish_reason:
        clock.finished(delta.finish_reason)
    if request.adapter:
        delta = delta._replace(adapter_digest=request.adapter.weights.digest)
    return delta._replace(timing=clock.timing()) if request.options.timing else delta
