"""What the engine needs from whatever computes a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llm_grpc.engine.step_plan import StepPlan


class ModelRunner(Protocol):
    """Computes steps. Called from the engine's thread alone."""

    def run(self, plan: StepPlan) -> Sequence[int]:
        """Compute the plan and return one token id for each of ``plan.samples``, in their order."""
        ...
