"""A scripted runner that tells how likely tokens are: a function of what stands before them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

from llm_grpc.engine.step_plan import StepPlan, StepResult, TokenScore
from tests.unit.scripted_runner import ScriptedRunner


def score_of(history: Sequence[int], token: int, num_top: int = 0) -> TokenScore:
    """The score of ``token`` after ``history``, and those of tokens 0, 1, … as the likeliest."""

    def logprob(token_id: int) -> float:
        return -(zlib.crc32(repr([*history, token_id]).encode()) % 4096) / 256

    return TokenScore(logprob(token), tuple((top, -float(top)) for top in range(num_top)))


class ScoringRunner(ScriptedRunner):
    """Scores by ``score_of``."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step, as ``ModelRunner`` says."""
        result = super().run(plan)
        scores = [score_of(self._histories[s.row], s.token, s.num_top) for s in plan.scores]
        return replace(result, scores=scores)

    def _write(self, plan: StepPlan) -> list[list[int]]:
        self._histories = super()._write(plan)
        return self._histories
