"""What the engine needs from whatever computes a step."""

from __future__ import annotations

from typing import Protocol

from llm_grpc.engine.step_plan import StepPlan, StepResult


class ModelRunner(Protocol):
    """Computes steps. Called from the engine's thread alone."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute the plan: a token for each of ``plan.samples`` and a score for each of ``plan.scores``."""
        ...
