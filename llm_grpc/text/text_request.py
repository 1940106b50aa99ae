"""One request for text, checked and complete: every default is already applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_grpc.engine.adapters import Adapter
from llm_grpc.engine.constraint import TokenConstraint
from llm_grpc.sampling_params import SamplingParams

NewConstraint = Callable[[], TokenConstraint]
"""Makes the state of a constraint anew, for one sequence. It does not block: what had to be compiled is."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What the answer holds besides the text, and ``SamplingParams.num_logprobs`` of its tokens.

    ``tokens`` and ``token_text`` are about the generated tokens, ``prompt_tokens`` and ``echo`` about the
    prompt's.
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
    model's vocabulary that are known to fit its context.

    ``num_sequences`` are generated, each with ``params`` but a seed of its own, the first with that of
    ``params``. At most the last ``truncate_tokens`` of the prompt are kept; 0 keeps all. Those of higher
    ``priority`` go first. ``adapter`` is what the model is changed by, None for the model as it is.
    """

    prompt: str | Sequence[int]
    params: SamplingParams
    num_sequences: int = 1
    options: AnswerOptions = AnswerOptions()
    constraint: NewConstraint | None = None
    priority: int = 0
    truncate_tokens: int = 0
    adds_special_tokens: bool = True
    adapter: Adapter | None = None
