"""Bound memory of the stages of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from llm_grpc import graph_names as names
from llm_grpc.devices import Device
from llm_grpc.runtime.crossing_buffers import CrossingBuffers
from llm_grpc.runtime.denormals import flushed_denormals
from llm_grpc.runtime.wiring import Wiring


class StagedBinding:
    """Memory that one run of the stages uses; others have bindings of their own and run beside it."""

    def __init__(
        self, sessions: Sequence[ort.InferenceSession], devices: Sequence[Device], wiring: Wiring
    ) -> None:
        self._sessions, self._wiring = sessions, wiring
        self._bindings = [session.io_binding() for session in sessions]
        self._crossing = CrossingBuffers(wiring, devices, self._bindings)

    def bind_input(self, name: str, *place: Any) -> None:
        """Bind memory as ``IOBinding.bind_input`` does, in each stage that reads ``name``.

        That of the token ids, ``[1, T]``, also settles the size of what stages hand on.
        """
        for stage in self._wiring.readers(name):
            self._bindings[stage].bind_input(name, *place)
        if name == names.INPUT_IDS:
            *_, shape, _ = place
            self._crossing.resize(shape[-1])

    def bind_output(self, name: str, *place: Any) -> None:
        """Bind memory as ``IOBinding.bind_output`` does, in the stage that writes ``name``."""
        self._bindings[self._wiring.writer(name)].bind_output(name, *place)

    def run_stage(self, stage: int) -> None:
        """Run one stage, once those before it have run; releases the GIL."""
        with flushed_denormals():
            self._sessions[stage].run_with_iobinding(self._bindings[stage])
        self._crossing.hand_on(stage)
