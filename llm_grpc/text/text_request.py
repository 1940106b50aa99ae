"""One request for text, checked and complete: every default is already applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_grpc.engine.adapters import Adapter
from llm_grpc.engine.constraint import TokenConstraint
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.text.cancellation import Cancellation


class TextConstraint(TokenConstraint, Protocol):
    """Holds one sequence to a form, and says where it could not."""

    def check(self) -> None:
        """Raise InvalidParameter where the sequence was ended because the form is too complex."""
        ...


NewConstraint = Callable[[], TextConstraint]
"""Makes the state of a constraint anew, for one sequence. It does not block: what had to be compiled is."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What the answer holds besides the text, and what ``SamplingParams`` say of logprobs.

    ``tokens`` is about the generated tokens, ``prompt_tokens`` and ``echo`` about the prompt, ``token_text``
    about the tokens of both.
    """

    tokens: bool = False
    token_text: bool = False
    prompt_tokens: bool = False
    echo: bool = False
    timing: bool = False
    receipt: bool = False


@dataclass(frozen=True, slots=True)
class TextRequest:
    """``prompt`` is a text, to which special tokens are added if ``adds_special_tokens``, or ids of the
    model's vocabulary, as many of which as are kept are known to fit its context.

    ``num_sequences`` are generated, each with ``params`` but a seed of its own, the first with that of
    ``params``. At most the last ``truncate_tokens`` of the prompt are kept; 0 keeps all. Those of higher
    ``priority`` go first. ``cancellation`` ends it from outside. ``shown_tokens`` are special tokens that
    give the text of their names; others give none. ``adapter`` is what the model is changed by, None for the
    model as it is.
    """

    prompt: str | Sequence[int]
    params: SamplingParams
    num_sequences: int = 1
    options: AnswerOptions = AnswerOptions()
    constraint: NewConstraint | None = None
    priority: int = 0
    truncate_tokens: int = 0
    adds_special_tokens: bool = True
    cancellation: Cancellation | None = None
    shown_tokens: frozenset[int] = frozenset()
    adapter: Adapter | None = None
