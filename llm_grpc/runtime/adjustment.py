"""What a request changes about logits before a token is chosen from them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_grpc.engine.constraint import TokenMask
from llm_grpc.engine.step_plan import Sample
from llm_grpc.sampling_params import SamplingParams

Logits = NDArray[np.float32] | NDArray[np.float64]
"""``[vocabulary]``: fp32 as a model gives them, fp64 once anything is changed."""

_Ids = NDArray[np.int64]
_Flags = NDArray[np.bool_]

_LEAST = float(np.finfo(np.float32).min)
"""What a logit of -infinity counts as, so that of tokens that may come one does, were they all impossible."""


def changes_logits(sample: Sample) -> bool:
    """Whether ``adjusted`` gives anything but what it takes."""
    params = sample.params
    return bool(
        sample.mask is not None
        or sample.banned
        or params.allowed_token_ids
        or params.banned_token_ids
        or params.logit_bias
        or params.repetition_penalty != 1
        or params.frequency_penalty
        or params.presence_penalty
    )


def adjusted(logits: Logits, sample: Sample) -> Logits:
    """Logits ``[vocabulary]`` with bias and penalties, -infinity where a token may not come.

    The bias is added first, then the repetition penalty divides or multiplies, then frequency and presence
    are subtracted. At least one token may come. What nothing is asked of is returned as it is.

    Raises:
        ValueError: the mask has no token.
    """
    if not changes_logits(sample):
        return logits
    row: NDArray[np.float64] = np.clip(logits, _LEAST, -_LEAST, dtype=np.float64)
    params = sample.params
    if params.logit_bias:
        tokens, bias = np.array(params.logit_bias).T
        row[tokens.astype(np.int64)] += bias
    if params.repetition_penalty != 1:
        _penalise_repetition(row, _ids(chain(sample.prompt_ids, sample.output_ids)), params)
    if params.frequency_penalty or params.presence_penalty:
        said, counts = np.unique(_ids(sample.output_ids), return_counts=True)
        row[said] -= params.frequency_penalty * counts + params.presence_penalty
    may_come = _permitted(sample, row.size)
    if may_come is not None:
        row[~may_come] = -np.inf
    return row


def _penalise_repetition(row: NDArray[np.float64], tokens: _Ids, params: SamplingParams) -> None:
    """Once for each token, however often it is there: every place is written from what it was before."""
    before = row[tokens]
    penalty = params.repetition_penalty
    row[tokens] = np.where(before > 0, before / penalty, before * penalty)


def _permitted(sample: Sample, vocabulary: int) -> _Flags | None:
    """Which tokens may come ``[vocabulary]``, at least one; None where all may.

    A rule that leaves nothing of what those before it leave is passed over. The mask is the first: whoever
    made it cannot go on from a token that it does not have.
    """
    params = sample.params
    may_come = None if sample.mask is None else _unpacked(sample.mask, vocabulary)
    if params.allowed_token_ids:
        may_come = _narrowed(may_come, _flags(params.allowed_token_ids, vocabulary))
    for banned in (params.banned_token_ids, sample.banned):
        if banned:
            may_come = _narrowed(may_come, ~_flags(banned, vocabulary))
    return may_come


def _unpacked(mask: TokenMask, vocabulary: int) -> _Flags:
    bits = np.frombuffer(mask.wait(), np.uint8)
    flags = np.unpackbits(bits, count=vocabulary, bitorder="little").view(np.bool_)
    if not flags.any():
        raise ValueError(f"this is a bug: a mask leaves none of {vocabulary} tokens")
    return flags


def _narrowed(before: _Flags | None, rule: _Flags) -> _Flags | None:
    both = rule if before is None else before & rule
    return both if both.any() else before


def _flags(tokens: tuple[int, ...], vocabulary: int) -> _Flags:
    flags = np.zeros(vocabulary, np.bool_)
    flags[_ids(tokens)] = True
    return flags


def _ids(tokens: Iterable[int]) -> NDArray[Any]:
    return np.fromiter(tokens, np.int64)
