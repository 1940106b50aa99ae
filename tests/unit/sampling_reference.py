"""What the sampler does, by the plainest means: lists, loops and Python's floats. Slow and easy to check."""

from __future__ import annotations

import array
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from llm_grpc.engine.step_plan import Sample


class FixedMask:
    """Allows ``tokens`` of ``vocabulary``; ``num_waits`` counts how often it was asked."""

    def __init__(self, vocabulary: int, tokens: Collection[int]) -> None:
        words = [0] * -(-vocabulary // 32)
        for token in tokens:
            words[token // 32] |= 1 << token % 32
        self._words = array.array("I", words)
        self.tokens = frozenset(tokens)
        self.num_waits = 0

    def wait(self) -> memoryview:
        self.num_waits += 1
        return memoryview(self._words)


@dataclass
class Reference:
    """The distribution of a sample's token, and how near to a border its least clear decision was."""

    probabilities: list[float] = field(default_factory=list)
    margin: float = math.inf

    def is_less(self, first: float, second: float) -> bool:
        self.margin = min(self.margin, abs(first - second))
        return first < second


def permitted(vocabulary: int, sample: Sample) -> set[int]:
    """Which tokens may come; a rule that would leave none is passed over."""
    params, mask = sample.params, sample.mask
    left = set(range(vocabulary))
    if isinstance(mask, FixedMask):
        left &= mask.tokens
    if params.allowed_token_ids:
        left = left & set(params.allowed_token_ids) or left
    for banned in (params.banned_token_ids, sample.banned):
        left = left - set(banned) or left
    return left


def adjusted(logits: Sequence[float], sample: Sample) -> list[float]:
    """After bias and penalties; -infinity where a token may not come."""
    params, row = sample.params, [float(x) for x in logits]
    for token, bias in params.logit_bias:
        row[token] += bias
    for token in {*sample.prompt_ids, *sample.output_ids}:
        if row[token] > 0:
            row[token] /= params.repetition_penalty
        else:
            row[token] *= params.repetition_penalty
    for token in set(sample.output_ids):
        count = list(sample.output_ids).count(token)
        row[token] -= params.frequency_penalty * count + params.presence_penalty
    may_come = permitted(len(row), sample)
    return [x if token in may_come else -math.inf for token, x in enumerate(row)]


def reference(logits: Sequence[float], sample: Sample) -> Reference:
    """The distribution of the sample's token."""
    found, params, row = Reference(), sample.params, adjusted(logits, sample)
    largest = max(row)
    if params.temperature == 0:
        first = row.index(largest)
        found.probabilities = [float(token == first) for token in range(len(row))]
        return found
    exponents = [(x - largest) / params.temperature for x in row]
    kept = {token: math.exp(x) for token, x in enumerate(exponents) if math.exp(x) > 0}
    if params.top_k:
        least = sorted(row, reverse=True)[min(params.top_k, len(row)) - 1]
        kept = {token: weight for token, weight in kept.items() if row[token] >= least}
    if params.top_p < 1:
        kept = _until({t: -w for t, w in kept.items()}, kept, exponents, params.top_p, found)
    if params.min_p > 0:
        share = params.min_p * max(kept.values())
        kept = {t: w for t, w in kept.items() if w == 1 or not found.is_less(w, share)}
    if params.typical_p < 1:
        kept = _typical(kept, exponents, params.typical_p, found)
    total = math.fsum(kept.values())
    found.probabilities = [kept.get(token, 0.0) / total for token in range(len(row))]
    return found


def _until(
    rank: dict[int, float],
    weights: dict[int, float],
    exponents: list[float],
    share: float,
    found: Reference,
) -> dict[int, float]:
    """Those of the lowest rank, of equal ones the lower id first, whose weights reach ``share`` of all."""
    order = sorted(weights, key=lambda token: (rank[token], token))
    total, mass, kept = math.fsum(weights.values()), 0.0, dict[int, float]()
    for token in order:
        kept[token] = weights[token]
        mass += weights[token]
        if not found.is_less(mass / total, share):
            break
    near_border = order[max(len(kept) - 2, 0) : len(kept) + 1]
    for first, second in pairwise(near_border):
        if exponents[first] != exponents[second]:
            found.is_less(rank[first], rank[second])
    return kept


def _typical(
    weights: dict[int, float], exponents: list[float], share: float, found: Reference
) -> dict[int, float]:
    total = math.fsum(weights.values())
    shares = [weight / total for weight in weights.values()]
    entropy = -math.fsum(p * math.log(p) for p in shares if p > 0)
    distance = {t: abs(math.log(total) - math.log(weight) - entropy) for t, weight in weights.items()}
    return _until(distance, weights, exponents, share, found)
