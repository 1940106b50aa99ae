"""``llm-grpc serve`` over a scripted runner: texts never end by themselves, and they stand still until the
test lets them go on.

    python -m tests.rpc.scripted_server MODEL_DIR GATE PLACE FLAG...

``GATE`` is a FIFO: whoever opens it for writing lets the server go on, for good. ``PLACE`` is where the
server waits for that: ``loading``, or ``decoding``, before the fifth token of the oldest text.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from llm_grpc.config import EngineConfig, ModelConfig, ModelSettings, ServerConfig
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.step_plan import StepPlan, StepResult
from llm_grpc.server.run import run
from tests.unit.scripted_runner import ScriptedRunner

Place = Literal["loading", "decoding"]

TOKENS_BEFORE_THE_GATE = 4


class GatedRunner(ScriptedRunner):
    """Stands still before a text gets its fifth token."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self._gate: Path | None = gate

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step, as ``ModelRunner`` says."""
        if self._gate and any(sample.index >= TOKENS_BEFORE_THE_GATE for sample in plan.samples):
            wait_at(self._gate)
            self._gate = None
        return super().run(plan)


def wait_at(gate: Path) -> None:
    """Wait until somebody opens the FIFO for writing."""
    gate.open("rb").close()


def main(model_dir: str, gate: str, place: Place, *flags: str) -> int:
    """Serve as ``llm-grpc serve FLAGS`` does; every flag is written ``--name=value``."""
    pairs = (flag.removeprefix("--").split("=", 1) for flag in flags)
    settings = {name.replace("-", "_"): value for name, value in pairs}

    def config(kind: type[Any]) -> Any:
        return kind(**{field.name: settings[field.name] for field in fields(kind) if field.name in settings})

    def make_runner(*_: object) -> ModelRunner:
        if place == "loading":
            wait_at(Path(gate))
            return ScriptedRunner()
        return GatedRunner(Path(gate))

    settings["model"] = model_dir
    models = [ModelSettings(config(ModelConfig), config(EngineConfig))]
    return run(models, config(ServerConfig), make_runner=make_runner)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))  # type: ignore[arg-type]
