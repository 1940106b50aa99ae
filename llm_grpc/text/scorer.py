"""How likely a model finds texts after a prompt."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from llm_grpc.engine.adapters import Adapter
from llm_grpc.engine.async_engine import AsyncEngine
from llm_grpc.engine.request import TokenEvent
from llm_grpc.engine.step_plan import TokenScore
from llm_grpc.errors import InvalidParameter, PromptTooLong
from llm_grpc.metrics import ModelMetrics
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.text.admission import Admission
from llm_grpc.text.cancellation import Cancellation
from llm_grpc.text.text_delta import TextToken
from llm_grpc.text.token_records import TokenRecords
from llm_grpc.text.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """``candidates`` to be scored, each alone, after ``prompt``; both are texts, or ids of the vocabulary.

    Of ``params`` what is about the prompt's tokens and the cache counts; it asks for one token. Texts of
    tokens are told with ``token_text``.
    """

    prompt: str | Sequence[int]
    candidates: Sequence[str] | Sequence[Sequence[int]]
    params: SamplingParams
    token_text: bool = False
    priority: int = 0
    cancellation: Cancellation | None = None
    adapter: Adapter | None = None


class ScoredText(NamedTuple):
    """One candidate's tokens, each with how likely it is after those before it."""

    tokens: Sequence[TextToken]
    logprob: float
    """The logarithm of the probability of all of them, summed in double precision."""


class Scores(NamedTuple):
    """The candidates in their order. ``cached_tokens`` of the prompt's were there before the call."""

    prompt_tokens: int
    cached_tokens: int
    candidates: list[ScoredText]


class TextScorer:
    """Scores texts with one model. Lives on the event loop.

    A call holds one permit, and takes more for candidates that are computed beside each other where there are
    some: it goes on with the one, and is refused as any call is where there is none.
    """

    def __init__(
        self, tokenizer: TextTokenizer, engine: AsyncEngine, admission: Admission, metrics: ModelMetrics
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self._admission = admission
        self._metrics = metrics

    async def score(self, request: ScoreRequest) -> Scores:
        """Score all candidates. The prompt is computed once: the engine's requests are one group.

        Raises:
            QueueFull: as many requests run and wait as the server admits.
            PromptTooLong: the prompt, or one with a candidate, has more tokens than the model takes.
            InvalidParameter: the prompt or a candidate has no tokens.
            EngineFailed: a run of the model failed.
            Cancelled: the request was cancelled.
        """
        async with request.cancellation.watched() if request.cancellation else nullcontext():
            with self._admission.permit():
                prompt_ids = await self._prompt(request.prompt)
                candidates = await self._candidates(request.candidates)
                self._check_lengths(len(prompt_ids), request.candidates, candidates)
                self._metrics.prompt_tokens.inc(len(prompt_ids) + sum(map(len, candidates)))
                events = await self._events(prompt_ids, candidates, request)
        scored = [
            self._scored(prompt_ids, ids, event.prompt_scores, request.token_text)
            for ids, event in zip(candidates, events, strict=True)
        ]
        return Scores(len(prompt_ids), min(event.cached_tokens for event in events), scored)

    async def _prompt(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """The prompt's ids; of an empty text those that the tokenizer begins every text with, if it does."""
        return await self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    async def _candidates(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The candidates' ids: they are all texts, or none of them is one."""
        plain = [text for text in texts if isinstance(text, str)]
        ids = [text for text in texts if not isinstance(text, str)]
        return await self._tokenizer.encode_plain(plain) if plain else ids

    def _check_lengths(
        self,
        num_prompt: int,
        asked: Sequence[str] | Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
    ) -> None:
        limit = self._tokenizer.max_prompt_tokens
        field = "candidates" if isinstance(asked[0], str) else "candidate_token_ids"
        for place, ids in enumerate(candidates):
            if not ids:
                raise InvalidParameter(f"{field}[{place}]", "has 0 tokens for this model's tokenizer")
            if num_prompt + len(ids) > limit:
                raise PromptTooLong(
                    f"{field}[{place}]",
                    f"has {len(ids)} tokens after a prompt of {num_prompt}, and {limit} are the limit",
                )

    def _scored(
        self, prompt_ids: Sequence[int], ids: Sequence[int], scores: Sequence[TokenScore], with_text: bool
    ) -> ScoredText:
        records, tokens = TokenRecords(self._tokenizer, prompt_ids, with_text=with_text), list[TextToken]()
        for token_id, score in zip(ids, scores, strict=True):
            tokens.append(records.record(token_id, score))
            records.push(token_id)
        records.flush(tokens)
        return ScoredText(tokens, math.fsum(score.logprob for score in scores))

    async def _events(
        self, prompt_ids: Sequence[int], candidates: Sequence[Sequence[int]], request: ScoreRequest
    ) -> list[TokenEvent]:
        """The one event of each candidate's request."""
        group = self._engine.new_group()
        events: dict[int, TokenEvent] = {}
        left = iter(range(len(candidates)))
        beside: set[asyncio.Task[None] | None] = set()

        async def compute(places: Iterator[int]) -> None:
            for place in places:
                prompt = [*prompt_ids, *candidates[place]]
                events[place] = await self._event(prompt, len(prompt_ids), group, request)

        async def compute_beside() -> None:
            async with self._admission.turn():
                beside.add(asyncio.current_task())
                await compute(left)

        num_others = min(len(candidates), self._admission.max_running) - 1
        others = [asyncio.create_task(compute_beside()) for _ in range(num_others)]
        try:
            await compute(left)
            await asyncio.gather(*(other for other in others if other in beside))
        finally:
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        return [events[place] for place in range(len(candidates))]

    async def _event(
        self, ids: Sequence[int], first_score: int, group: int, request: ScoreRequest
    ) -> TokenEvent:
        batches = self._engine.generate(
            ids,
            request.params,
            group=group,
            first_score=first_score,
            priority=request.priority,
            adapter=request.adapter,
        )
        async with aclosing(batches):
            (event,) = await anext(batches)
        if len(event.prompt_scores) != len(ids) - first_score:
            raise ValueError(
                f"this is a bug: {len(ids) - first_score} tokens have {len(event.prompt_scores)} scores"
            )
        return event
