"""What a step is asked to choose, and the guard between constraints and the engine."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Collection

from llm_grpc.engine.constraint import TokenConstraint, TokenMask
from llm_grpc.engine.request import Request
from llm_grpc.engine.step_plan import Sample
from llm_grpc.sampling_params import SamplingParams

log = logging.getLogger(__name__)

_WORD_BITS = 32


class GuardedMask:
    """A constraint's mask, begun when this is made. What the constraint raises is kept as ``has_failed``.

    A step is many requests': it goes on with a mask that allows all ``vocabulary_size`` tokens, and what the
    request of a failed mask gets is thrown away.
    """

    def __init__(self, constraint: TokenConstraint, vocabulary_size: int) -> None:
        self._num_words = -(-vocabulary_size // _WORD_BITS)
        self._mask: TokenMask | None = None
        self.has_failed = False
        try:
            self._mask = constraint.start()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's alone
            self._fail(error)

    def wait(self) -> memoryview:
        """What ``TokenMask.wait`` says."""
        try:
            if self._mask:
                return self._mask.wait()
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(error)
        return memoryview(array("I", [2**_WORD_BITS - 1]) * self._num_words)

    def _fail(self, error: Exception) -> None:
        log.error("a constraint failed to say which tokens may come", exc_info=error)
        self.has_failed = True


def has_penalties(params: SamplingParams) -> bool:
    """Whether what came before changes how tokens are chosen."""
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1)


def sample_of(
    request: Request, row: int, eos_token_ids: Collection[int], vocabulary_size: int, ahead: int = 0
) -> Sample:
    """The request's next token, or with ``ahead`` the one so many places behind it, chosen at packed ``row``.

    Lists of tokens are the request's own, as they are while the step runs. Its mask is begun once a token.
    """
    params, index = request.params, len(request.output_ids) + ahead
    if request.constraint and not request.mask:
        request.mask = GuardedMask(request.constraint, vocabulary_size)
    prompt_ids, output_ids = (request.prompt_ids, request.output_ids) if has_penalties(params) else ((), ())
    banned = _ends(params, eos_token_ids) if index < params.min_tokens else ()
    return Sample(request.request_id, row, index, params, prompt_ids, output_ids, request.mask, banned)


def _ends(params: SamplingParams, eos_token_ids: Collection[int]) -> tuple[int, ...]:
    """Tokens that end a text."""
    ends = () if params.ignore_eos else sorted(eos_token_ids)
    return tuple(dict.fromkeys((*ends, *params.stop_token_ids)))
