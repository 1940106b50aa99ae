"""One request inside the engine, and what the engine says about it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from llm_grpc.engine.common_prefix import common_prefix
from llm_grpc.engine.constraint import TokenConstraint, TokenMask
from llm_grpc.engine.prompt_lookup import PromptLookup
from llm_grpc.engine.step_plan import TokenScore
from llm_grpc.sampling_params import FinishReason, SamplingParams


class TokenEvent(NamedTuple):
    """One generated token of one request. ``finish_reason`` is set on the last one.

    ``score`` tells how likely it was, where the request asks for that. Set on the first one alone:
    ``cached_tokens`` counts the prompt tokens that were found in the cache, ``prompt_scores`` are those of
    the prompt's tokens from ``first_score`` on, and ``begun_s`` is when the request was first given a slot.
    """

    request_id: int
    token_id: int
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    score: TokenScore | None = None
    prompt_scores: tuple[TokenScore, ...] = ()
    begun_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The request ended because a run failed, or its constraint."""

    request_id: int


Event = TokenEvent | FailedEvent


class StepMask(TokenMask, Protocol):
    """The mask of one token of one request; ``has_failed`` once its constraint has raised something."""

    has_failed: bool


@dataclass(slots=True, eq=False)
class Request:
    """A sequence on its way: ``prompt_ids`` then ``output_ids``, of which ``num_computed`` are in the cache.

    The first ``num_cached`` of these were there before, when it was last admitted. Owned by the engine thread
    from submission on. ``slot`` is set while the request runs, ``lookup`` once it has run alone.
    ``num_found`` is what others had computed of it, once it was preempted: it may find its own tokens then.
    ``known_ids`` were known when it last began to wait; they are prefilled before it decodes.

    ``constraint`` holds its tokens to a form. Requests of one ``group``, a number above 0, share the
    beginning of their prompts, which is computed once. The prompt's tokens from ``first_score`` on, at least
    1, are scored; all but the first where only ``params`` ask for that. Those of higher ``priority`` go
    first, and nobody waits for ever; it came at ``arrived_s`` and first got a slot at ``begun_s``. ``mask``
    is what its constraint says of the next token, once that is asked for. ``shared`` is how many tokens of
    its prompt each of its group has that it was compared with, by their ids. ``adapter`` is the number of the
    adapter that computes it, 0 for none; all of a group have the same. By ``salt`` it shares the cache; None
    is with nobody.
    """

    request_id: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    constraint: TokenConstraint | None = None
    group: int = 0
    first_score: int | None = None
    priority: int = 0
    arrived_s: float = 0.0
    begun_s: float | None = None
    adapter: int = 0
    slot: int | None = None
    num_computed: int = 0
    num_cached: int = 0
    num_found: int | None = None
    output_ids: list[int] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    mask: StepMask | None = None
    lookup: PromptLookup | None = None
    shared: dict[int, int] = field(default_factory=dict)
    known_ids: Sequence[int] = field(init=False)
    salt: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.known_ids = self.prompt_ids
        self.salt = self._salt()
        if self.first_score is None and self.params.num_prompt_logprobs is not None:
            self.first_score = 1

    @property
    def private_salt(self) -> str | None:
        """The salt, where only requests of its group have it: nothing is kept for it once they are gone."""
        return self.salt if self.params.cache_disabled else None

    @property
    def next_score(self) -> int | None:
        """The next of the prompt's tokens to be scored; None where none is left."""
        if self.first_score is None:
            return None
        at = self.first_score + len(self.prompt_scores)
        return at if at < len(self.prompt_ids) else None

    @property
    def max_found(self) -> int:
        """How many of ``known_ids`` may be found. The one behind them is computed in any case: the last one,
        or the one whose row says how likely the next score's token is.
        """
        return (len(self.known_ids) if self.next_score is None else self.next_score) - 1

    @property
    def findable_ids(self) -> list[int]:
        """The tokens that may be found, and the one behind them."""
        return list(self.known_ids[: self.max_found + 1])

    def _salt(self) -> str | None:
        """No caller can name a group's, and keys of one adapter are no other's."""
        if self.params.cache_disabled:
            return f"{self.adapter}:{self.group}:" if self.group else None
        return f"{self.adapter}:0:{self.params.cache_salt}"

    def num_shared(self, mate: Request) -> int:
        """How many tokens its prompt and that of another one of its group begin with; compared once."""
        if mate.request_id not in self.shared:
            ours, theirs = self.prompt_ids, mate.prompt_ids
            same = len(ours) if ours is theirs else common_prefix(list(ours), list(theirs))
            self.shared[mate.request_id] = same
        return self.shared[mate.request_id]

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of it has been computed, only found."""
        return self.num_computed == self.num_cached

    @property
    def is_prefilling(self) -> bool:
        """Whether tokens remain to be computed before it decodes."""
        return self.num_computed < len(self.known_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def computed_ids(self) -> list[int]:
        """The tokens that are in the cache."""
        return [*self.prompt_ids, *self.output_ids][: self.num_computed]

    @property
    def num_left(self) -> int:
        """Tokens that it may still generate, were the context long enough."""
        return self.params.max_tokens - len(self.output_ids)

    def most_tokens(self, context_tokens: int) -> int:
        """Tokens of prompt and output together if nothing ends it before its time."""
        return min(len(self.prompt_ids) + self.params.max_tokens, context_tokens)

    def start_over(self) -> None:
        """Nothing of it is in the cache any more; what it has said stays said."""
        self.known_ids = [*self.prompt_ids, *self.output_ids]
        self.num_computed = self.num_cached = 0

    def say(self, token: int) -> None:
        """It has one token more. Raises what its constraint raises."""
        self.output_ids.append(token)
        self.mask = None
        if self.lookup:
            self.lookup.extend((token,))
        if self.constraint:
            self.constraint.advance(token)

    def finish_reason(self, eos_token_ids: Collection[int], context_tokens: int) -> FinishReason | None:
        """Why the last token is the last one; None where it is not. Raises what its constraint raises."""
        params, last = self.params, self.output_ids[-1]
        if last in eos_token_ids and not params.ignore_eos:
            return FinishReason.EOS
        if last in params.stop_token_ids or (self.constraint and self.constraint.is_complete):
            return FinishReason.STOP
        if self.num_left <= 0:
            return FinishReason.LENGTH
        if self.num_tokens >= context_tokens:
            return FinishReason.CONTEXT_LIMIT
        return None


def slot_of(request: Request) -> int:
    """The slot of a running request.

    Raises:
        ValueError: it does not run.
    """
    if request.slot is None:
        raise ValueError(f"this is a bug: request {request.request_id} runs without a slot")
    return request.slot
