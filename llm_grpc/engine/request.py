"""One request inside the engine, and what the engine says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_grpc.sampling_params import FinishReason, SamplingParams


class TokenEvent(NamedTuple):
    """One generated token of one request. ``finish_reason`` is set on the last one.

    ``cached_tokens`` counts the prompt tokens that were found in the cache; set on the first one.
    """

    request_id: int
    token_id: int
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The request ended because a run failed."""

    request_id: int


Event = TokenEvent | FailedEvent


@dataclass(slots=True, eq=False)
class Request:
    """A sequence on its way: ``prompt_ids`` then ``output_ids``, of which ``num_computed`` are in the cache.

    Owned by the engine thread from submission on. ``slot`` is set while the request runs.
    """

    request_id: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    slot: int | None = None
    num_computed: int = 0
    output_ids: list[int] = field(default_factory=list)

    @property
    def is_prefilling(self) -> bool:
        """Whether prompt tokens remain to be computed."""
        return self.num_computed < len(self.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.prompt_ids) + len(self.output_ids)
