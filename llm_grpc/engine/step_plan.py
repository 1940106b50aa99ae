"""What one step computes: plain frozen data from the scheduler to the model runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_grpc.sampling_params import SamplingParams


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
class DecodeRow:
    """One token of a running sequence: ``token`` goes to ``position`` of ``slot``, after all before it."""

    slot: int
    token: int
    position: int


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens of one sequence that are known: ``tokens`` go to positions ``start`` and on of ``slot``.

    They are a prompt's; or the last one that was generated and ``num_guesses`` guesses at those after it.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    num_guesses: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Choose the next token of ``request_id`` from the logits of packed token ``row``.

    ``index`` counts the request's generated tokens from 0; with the seed it fixes the random draw.
    """

    request_id: int
    row: int
    index: int
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A packed batch: the decode rows come first, then the chunk's tokens. Never empty.

    ``releases`` are done first, then ``copies``, one after the other, then the rest is computed. Slots hold
    what may be used later, also those that a plan does not name: nothing is written but what the plan says.
    """

    decode: tuple[DecodeRow, ...]
    chunk: PrefillChunk | None
    samples: tuple[Sample, ...]
    copies: tuple[SlotCopy, ...] = ()
    releases: tuple[SlotRelease, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Packed tokens of the step."""
        return len(self.decode) + (len(self.chunk.tokens) if self.chunk else 0)
