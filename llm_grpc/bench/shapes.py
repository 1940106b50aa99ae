"""Workloads that are drawn. A seed gives one endless sequence: a longer run begins as a shorter one does.

Token ids are uniform over the whole vocabulary. Lengths by shape:

fixed           every prompt and every answer has one length.
uniform         each length of a range is as likely as the others.
shared-prefix   N prefixes; requests take them in turn, each followed by tokens of its own (uniform).
sharegpt-like   lognormal: medians of 100 prompt and 200 output tokens, sigma 1, so means of 165 and 330.
                This is our choice, not a fit to a data set: many short turns, a long tail, answers longer
                than prompts, as conversations have. A prompt is cut to half of the context, an answer to
                what is left of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from llm_grpc.bench.entry import Entry, ModelLimits
from llm_grpc.bench.settings import WorkloadSettings, parse_range
from llm_grpc.errors import BenchError

PROMPT_MEDIAN, OUTPUT_MEDIAN, SIGMA = 100.0, 200.0, 1.0

DEFAULT_RANGES = {
    "fixed": ("128", "64"),
    "uniform": ("32:512", "16:256"),
    "shared-prefix": ("16:64", "16:64"),
}
"""Prompt and output tokens where the settings leave them empty."""

Range = tuple[int, int]


def shape_entries(settings: WorkloadSettings, limits: ModelLimits) -> Iterator[Entry]:
    """Draw entries without end.

    Raises:
        BenchError: a length does not go with the shape, or the model does not allow it.
    """
    draw = np.random.default_rng(settings.seed)
    ranges = length_ranges(settings)
    if ranges is None:
        return _sharegpt_like(draw, limits)
    prompt, output = ranges
    if settings.shape != "shared-prefix":
        limits.check(f"--shape {settings.shape}", prompt[1], output[1])
        return _uniform(draw, limits, prompt, output)
    limits.check("--shape shared-prefix", settings.prefix_tokens + prompt[1], output[1])
    prefixes = [token_ids(draw, settings.prefix_tokens, limits) for _ in range(settings.prefixes)]
    return _shared_prefix(draw, limits, prefixes, prompt, output)


def token_ids(draw: np.random.Generator, count: int, limits: ModelLimits) -> tuple[int, ...]:
    """Draw ids of the model's vocabulary."""
    return tuple(draw.integers(0, limits.vocabulary_size, count).tolist())


def length_ranges(settings: WorkloadSettings) -> tuple[Range, Range] | None:
    """The least and the most tokens of prompts and of answers; None for a shape that has none.

    Raises:
        BenchError: the settings give what the shape does not take.
    """
    if settings.shape == "sharegpt-like":
        if settings.prompt_tokens or settings.output_tokens:
            raise BenchError(
                "--prompt-tokens and --output-tokens do not go with --shape sharegpt-like, "
                "which draws its own lengths"
            )
        return None
    prompt, output = DEFAULT_RANGES[settings.shape]
    ranges = parse_range(settings.prompt_tokens or prompt), parse_range(settings.output_tokens or output)
    if settings.shape == "fixed" and any(least != most for least, most in ranges):
        raise BenchError(
            "--shape fixed takes one number, not a range, as --prompt-tokens and --output-tokens"
        )
    return ranges


def _uniform(draw: np.random.Generator, limits: ModelLimits, prompt: Range, output: Range) -> Iterator[Entry]:
    while True:
        count, answer = (int(draw.integers(least, most + 1)) for least, most in (prompt, output))
        yield Entry(token_ids(draw, count, limits), answer)


def _shared_prefix(
    draw: np.random.Generator,
    limits: ModelLimits,
    prefixes: list[tuple[int, ...]],
    prompt: Range,
    output: Range,
) -> Iterator[Entry]:
    for index, entry in enumerate(_uniform(draw, limits, prompt, output)):
        yield Entry(prefixes[index % len(prefixes)] + entry.prompt, entry.output_tokens)


def _sharegpt_like(draw: np.random.Generator, limits: ModelLimits) -> Iterator[Entry]:
    longest = max(1, min(limits.max_prompt_tokens, limits.context_tokens // 2))
    while True:
        count = _lognormal(draw, PROMPT_MEDIAN, longest)
        left = min(limits.max_tokens, limits.context_tokens - count)
        answer = _lognormal(draw, OUTPUT_MEDIAN, left)
        yield Entry(token_ids(draw, count, limits), answer)


def _lognormal(draw: np.random.Generator, median: float, most: int) -> int:
    return min(most, max(1, round(draw.lognormal(math.log(median), SIGMA))))
