"""Comparing logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_grpc.export.verify_drive import Trace
from llm_grpc.export.verify_report import Greedy, Logits

Rows = NDArray[np.float32]


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms of the probabilities, in float64."""
    shifted = row.astype(np.float64) - row.max()
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return logarithms


@dataclass
class Comparison:
    """Sums over the rows of all traces."""

    tie: float
    rows: int = 0
    prompts: int = 0
    max_abs_error: float = 0.0
    relative_error: float = 0.0
    sum_kl: float = 0.0
    max_kl: float = 0.0
    tokens: int = 0
    equal: int = 0
    ties: int = 0

    def add(self, trace: Trace, reference: Rows) -> None:
        """Compare a trace with the reference's logits after the same tokens."""
        self.prompts += 1
        for found, wanted in zip(trace.rows, reference, strict=True):
            self._add_row(found, wanted)
        for token, wanted in zip(trace.tokens, reference[len(trace.prompt) - 1 :], strict=True):
            self._add_token(token, wanted)

    def _add_row(self, found: Rows, wanted: Rows) -> None:
        error = float(np.abs(found - wanted).max())
        scale = float(np.abs(wanted).max())
        expected = log_softmax(wanted)
        kl = float((np.exp(expected) * (expected - log_softmax(found))).sum())
        self.rows += 1
        self.sum_kl += kl
        # numpy's maximum keeps what is not a number, Python's loses it.
        self.max_abs_error = float(np.maximum(self.max_abs_error, error))
        self.relative_error = float(np.maximum(self.relative_error, error / scale if scale else error))
        self.max_kl = float(np.maximum(self.max_kl, kl))

    def _add_token(self, token: int, wanted: Rows) -> None:
        self.tokens += 1
        gap = float(wanted.max() - wanted[token])
        if token == int(wanted.argmax()):
            self.equal += 1
        elif gap <= self.tie * float(np.abs(wanted).max()):
            self.ties += 1

    def logits(self) -> Logits:
        """The report's part on logits."""
        return Logits(
            rows=self.rows,
            max_abs_error=self.max_abs_error,
            relative_error=self.relative_error,
            mean_kl_nats=self.sum_kl / self.rows,
            max_kl_nats=self.max_kl,
        )

    def greedy(self) -> Greedy:
        """The report's part on tokens."""
        return Greedy(prompts=self.prompts, tokens=self.tokens, equal=self.equal, ties=self.ties)


def perplexity(
    logits_of: Callable[[list[int]], Rows], windows: list[list[int]], on_window: Callable[[int, int], None]
) -> float:
    """The exponential of the mean negative log-likelihood of all tokens but the windows' first; 1 of none."""
    total, count = 0.0, sum(len(window) - 1 for window in windows)
    for index, window in enumerate(windows):
        total -= _log_likelihood(logits_of(window), window)
        on_window(index + 1, len(windows))
    return float(np.exp(total / count)) if count else 1.0


def _log_likelihood(logits: Rows, window: list[int]) -> float:
    """Of all tokens but the first; what it looked at is gone before the next window's logits are made."""
    pairs = zip(logits[:-1], window[1:], strict=True)
    return sum(float(log_softmax(row)[token]) for row, token in pairs)
