"""What one step computes: plain frozen data from the scheduler to the model runner.

What a step has for each row is a NamedTuple: a frozen dataclass of as many fields takes longer to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_grpc.engine.constraint import TokenMask
from llm_grpc.sampling_params import SamplingParams

LONG_CONTEXT = 512
"""Tokens of a sequence beyond which lowering ``paged`` computes decode steps by another kernel."""

MAX_SCORED_ROWS = 64
"""Scores of one step at most. Each is a row of logits beside those of samples, and runners have memory for
so many."""


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """The keys and values of the first ``num_tokens`` tokens of ``source`` go to ``target``; at least one."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SlotRelease:
    """Nobody reads what is behind the first ``num_kept`` positions of ``slot``: its memory is given back."""

    slot: int
    num_kept: int


@dataclass(frozen=True, slots=True)
class BlockGrant:
    """Of lowering ``paged``: what ``slot`` writes from place ``first`` of its table on goes to ``blocks``.

    A block holds the keys and values of ``block_size`` tokens in every layer; place ``i`` of a table has the
    block of positions ``i * block_size`` and on. Grants of earlier plans hold until others take their places.
    """

    slot: int
    first: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Of lowering ``paged``: all that block ``source`` holds goes to block ``target``."""

    source: int
    target: int


class DecodeRow(NamedTuple):
    """One token of a running sequence: ``token`` goes to ``position`` of ``slot``, after all before it.

    It is computed with the adapter of number ``adapter``; 0 is none.
    """

    slot: int
    token: int
    position: int
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens of one sequence that are known: ``tokens`` go to positions ``start`` and on of ``slot``.

    They are a prompt's; or the last one that was generated and ``num_guesses`` guesses at those after it.
    They are computed with the adapter of number ``adapter``; 0 is none.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    num_guesses: int = 0
    adapter: int = 0


class Sample(NamedTuple):
    """Choose the next token of ``request_id`` from the logits of packed token ``row``.

    ``index`` counts the request's generated tokens from 0; with the seed it fixes the random draw. Where
    ``params`` have penalties, ``prompt_ids`` and ``output_ids`` are the tokens before. ``mask`` says which
    tokens may come; None where all may. Those of ``banned`` may not, beside the ones that ``params`` ban:
    they would end the text too early.

    They apply in this order: ``mask``, ``params.allowed_token_ids``, ``params.banned_token_ids``, ``banned``.
    One that would leave no token is passed over.
    """

    request_id: int
    row: int
    index: int  # type: ignore[assignment]  # a number hides a method of tuples that nobody calls
    params: SamplingParams
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    mask: TokenMask | None = None
    banned: tuple[int, ...] = ()


class Score(NamedTuple):
    """Tell how likely ``token`` is after packed token ``row``, and the ``num_top`` likeliest there."""

    request_id: int
    row: int
    token: int
    num_top: int = 0


class TokenScore(NamedTuple):
    """The logarithm of a token's probability by the model's own logits, whatever the sampling parameters.

    ``top`` are likeliest tokens with theirs, likeliest first, of equal ones the lower id first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A packed batch: the decode rows come first, then the tokens of each chunk in turn. Never empty.

    ``releases`` are done first, then ``grants``, then ``copies`` and ``block_copies``, one after the other,
    then the rest is computed. Slots and blocks hold what may be used later, also those that a plan does not
    name: nothing is written but what the plan says. Lowering ``slots`` takes at most one chunk, and neither
    grants nor copies of blocks; lowering ``paged`` takes those, and no copies or releases of slots.

    Several samples and scores may be of one row. There are at most ``MAX_SCORED_ROWS`` scores.
    """

    decode: tuple[DecodeRow, ...]
    chunks: tuple[PrefillChunk, ...]
    samples: tuple[Sample, ...]
    copies: tuple[SlotCopy, ...] = ()
    releases: tuple[SlotRelease, ...] = ()
    grants: tuple[BlockGrant, ...] = ()
    block_copies: tuple[BlockCopy, ...] = ()
    scores: tuple[Score, ...] = ()

    @property
    def chunk(self) -> PrefillChunk | None:
        """The only chunk, None where there is none; ValueError where there are several."""
        if len(self.chunks) > 1:
            raise ValueError(f"this is a bug: {len(self.chunks)} chunks, and this lowering takes one")
        return self.chunks[0] if self.chunks else None

    @property
    def logit_rows(self) -> tuple[int, ...]:
        """The packed token of which logits are asked, for each of the samples and then of the scores."""
        return (*(sample.row for sample in self.samples), *(score.row for score in self.scores))

    @property
    def slots(self) -> set[int]:
        """Slots of which the step computes tokens."""
        return {row.slot for row in self.decode} | {chunk.slot for chunk in self.chunks}

    @property
    def num_tokens(self) -> int:
        """Packed tokens of the step."""
        return len(self.decode) + sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a run found: a token for each of the plan's samples, and a score for each of its scores.

    ``logprobs`` are those of chosen tokens, by place among the samples, where their parameters ask for them.
    """

    tokens: Sequence[int]
    logprobs: Mapping[int, TokenScore] = field(default_factory=dict)
    scores: Sequence[TokenScore] = ()
