"""The runner of an exported model in a verification, where no scheduler gives out memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import BlockGrant, StepPlan
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.paged_runner import PagedRunner
from llm_grpc.runtime.slot_runner import SlotRunner


class LogitsRunner(Protocol):
    """Computes the logits of a plan."""

    def logits(self, plan: StepPlan) -> NDArray[np.float32]:
        """Logits ``[samples, vocabulary]``, valid until the next run."""
        ...


class GrantedRunner:
    """A ``PagedRunner`` that is told in each plan which blocks its slots have: the same ones in each."""

    def __init__(self, runner: PagedRunner, grants: Iterable[BlockGrant]) -> None:
        self._runner, self._grants = runner, tuple(grants)

    def logits(self, plan: StepPlan) -> NDArray[np.float32]:
        """Logits ``[samples, vocabulary]``, valid until the next run."""
        return self._runner.logits(replace(plan, grants=self._grants))


def open_runner(
    model_dir: Path, manifest: Manifest, num_slots: int, capacity: int, chunk_tokens: int, packs: bool
) -> LogitsRunner:
    """The runner of the manifest's lowering, with ``num_slots`` sequences of ``capacity`` tokens.

    Raises:
        StartupError: the model directory cannot be loaded.
    """
    if manifest.block_size is None:
        return SlotRunner(model_dir, manifest, num_slots, capacity, packs=packs)
    places = -(-capacity // manifest.block_size)
    step = chunk_tokens + num_slots
    runner = PagedRunner(model_dir, manifest, places * num_slots, num_slots, capacity, step, packs=packs)
    # Blocks of a sequence do not lie side by side, as those of a server do not.
    owned = (tuple(range(slot, places * num_slots, num_slots)) for slot in range(num_slots))
    return GrantedRunner(runner, (BlockGrant(slot, 0, blocks) for slot, blocks in enumerate(owned)))
