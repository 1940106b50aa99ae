"""One request inside the engine, and what the engine says about it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_grpc.engine.constraint import TokenConstraint
from llm_grpc.engine.prompt_lookup import PromptLookup
from llm_grpc.engine.step_plan import TokenScore
from llm_grpc.sampling_params import FinishReason, SamplingParams


class TokenEvent(NamedTuple):
    """One generated token of one request. ``finish_reason`` is set on the last one.

    ``score`` tells how likely it was, where the request asks for that. Set on the first one alone:
    ``cached_tokens`` counts the prompt tokens that were found in the cache, ``prompt_scores`` are those of
    the prompt's tokens from ``first_score`` on, and ``begun_s`` is when the engine began with the request.
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
    """The request ended because a run failed."""

    request_id: int


Event = TokenEvent | FailedEvent


@dataclass(slots=True, eq=False)
class Request:
    """A sequence on its way: ``prompt_ids`` then ``output_ids``, of which ``num_computed`` are in the cache.

    The first ``num_cached`` of these were there before, when it was last admitted. Owned by the engine thread
    from submission on. ``slot`` is set while the request runs, ``lookup`` once it has run alone.
    ``num_found`` is what others had computed of it, once it was preempted: it may find its own tokens then.
    ``known_ids`` were known when it last began to wait; they are prefilled before it decodes.

    ``constraint`` holds its tokens to a form. Requests of one ``group``, a number above 0, share the
    beginning of their prompts, which is computed once. The prompt's tokens from ``first_score`` on, at least
    1, are scored. Those of higher ``priority`` go first, and nobody waits for ever; it came at ``arrived_s``.
    ``adapter`` is the number of the adapter that computes it, 0 for none; all of a group have the same.
    """

    request_id: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    constraint: TokenConstraint | None = None
    group: int = 0
    first_score: int | None = None
    priority: int = 0
    arrived_s: float = 0.0
    adapter: int = 0
    slot: int | None = None
    num_computed: int = 0
    num_cached: int = 0
    num_found: int | None = None
    output_ids: list[int] = field(default_factory=list)
    lookup: PromptLookup | None = None
    known_ids: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        self.known_ids = self.prompt_ids

    @property
    def salt(self) -> str | None:
        """What the request shares the cache by; None is with nobody. Keys of one adapter are no other's."""
        return None if self.params.cache_disabled else f"{self.adapter}:{self.params.cache_salt}"

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

    def finish_reason(self, eos_token_ids: Collection[int], context_tokens: int) -> FinishReason | None:
        """Why the last token is the last one; None where it is not."""
        if self.output_ids[-1] in eos_token_ids and not self.params.ignore_eos:
            return FinishReason.EOS
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
