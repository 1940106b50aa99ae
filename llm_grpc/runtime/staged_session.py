"""The sessions of a model's stages, which run one after the other, as one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from llm_grpc.devices import CPU, Device
from llm_grpc.errors import ManifestError, StartupError
from llm_grpc.graph_names import INTERFACE
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.session import open_session
from llm_grpc.runtime.staged_binding import StagedBinding
from llm_grpc.runtime.wiring import Wiring


class StagedSession:
    """Sessions that run in turn, each on its one of ``devices``; a whole model is one stage.

    To those who bind memory it is one session: an input goes to all stages that have it, and what stages
    hand on to each other is bound by itself. The cache of a layer is read and written by one stage.

    Raises:
        ManifestError: the sessions are not the stages of one model.
    """

    def __init__(self, sessions: Sequence[ort.InferenceSession], devices: Sequence[Device]) -> None:
        self.sessions, self.devices = tuple(sessions), tuple(devices)
        self.wiring = Wiring(self.sessions)
        stated = {s.get_modelmeta().custom_metadata_map.get(INTERFACE) for s in self.sessions}
        if len(stated) > 1:
            raise ManifestError("the stages were made for different models: export again")

    @property
    def num_stages(self) -> int:
        """Sessions that run one after the other."""
        return len(self.sessions)

    def get_inputs(self) -> list[Any]:
        """What is bound from outside, each name once."""
        return list(self.wiring.inputs())

    def get_outputs(self) -> list[Any]:
        """What comes out; not what goes on to other stages."""
        return list(self.wiring.outputs())

    def get_modelmeta(self) -> Any:
        """The first stage's; what the others state of the interface is the same."""
        return self.sessions[0].get_modelmeta()

    def io_binding(self) -> StagedBinding:
        """Bindings of all stages, with memory of their own for what stages hand on."""
        return StagedBinding(self.sessions, self.devices, self.wiring)


def open_stages(
    model_dir: Path,
    manifest: Manifest,
    devices: Sequence[Device] = (CPU,),
    threads: int = 0,
    packs: bool = True,
    device_options: Mapping[str, str] | None = None,
) -> StagedSession:
    """A session for each graph of the model, each on its device, or all on the only one.

    ``device_options`` go to the providers of GPUs.

    Raises:
        StartupError: there are neither as many devices as stages nor one for all, or a provider did not load.
        ManifestError: a graph cannot be run, or they are not the stages of one model.
    """
    check_devices(devices, manifest)
    graphs = manifest.graphs
    places = devices if len(devices) > 1 else [*devices] * len(graphs)
    sessions = [
        open_session(model_dir / name, threads, packs, manifest.weights_bytes, device, device_options)
        for name, device in zip(graphs, places, strict=True)
    ]
    return StagedSession(sessions, places)


def check_devices(devices: Sequence[Device], manifest: Manifest) -> None:
    """Raises StartupError where there are neither as many devices as stages nor one for all."""
    graphs = manifest.graphs
    if len(devices) not in {1, len(graphs)}:
        is_cut = f"has {len(graphs)} stages" if manifest.stages else "is not cut into stages"
        raise StartupError(
            f"device is {','.join(map(str, devices))}, and {manifest.name} {is_cut}: name one device, or "
            f"export it with --stages {len(devices)}"
        )
