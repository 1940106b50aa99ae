"""The stages of a paged model, each with its session, its layers' cache and what it copies on its device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from llm_grpc import graph_names as names
from llm_grpc.devices import Device
from llm_grpc.engine.step_plan import BlockCopy
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.adapters import AdapterMemory
from llm_grpc.runtime.crossing_buffers import CrossingBuffers
from llm_grpc.runtime.device_memory import ELEMENT_TYPES, DeviceArray, SessionBinding, Traffic
from llm_grpc.runtime.interface import check_interface
from llm_grpc.runtime.paged_bindings import BlockPool, PagedBinding, Resident, RowOutputs
from llm_grpc.runtime.paged_step import Arrays
from llm_grpc.runtime.session import open_session
from llm_grpc.runtime.staged_session import StagedSession

_COLUMN = 32
"""int64 numbers from one aligned address to the next."""


class PagedStages:
    """The sessions of a model, and ``num_blocks`` blocks and one more of each stage's layers on its device.

    Raises:
        ManifestError: the graphs are not what the manifest says.
        StartupError: there is no memory for the cache.
    """

    def __init__(
        self, model_dir: Path, manifest: Manifest, session: StagedSession, num_blocks: int, traffic: Traffic
    ) -> None:
        assert manifest.block_size is not None
        check_interface(session, manifest)
        self.session, self.traffic = session, traffic
        self.names = [_names(stage) for stage in session.sessions]
        self.pools = [
            BlockPool(manifest.kv_cache, _layers(known), num_blocks, manifest.block_size, device, traffic)
            for known, device in zip(self.names, session.devices, strict=True)
        ]
        room = manifest.adapters
        self.adapters = [
            AdapterMemory(room, known, device, traffic)
            for known, device in zip(self.names, session.devices, strict=True)
            if room
        ]
        count = session.num_stages
        self._copies = [
            _BlockCopies(model_dir / names.blocks_graph(stage, count), pool, device, traffic)
            for stage, (pool, device) in enumerate(zip(self.pools, session.devices, strict=True))
        ]

    def resident(self, stage: int) -> list[Resident]:
        """The memory of ``stage`` that all of its steps use."""
        return [self.pools[stage], *self.adapters[stage : stage + 1]]

    def copy(self, copy: BlockCopy) -> None:
        """Do what a plan says in every stage; ValueError where there is no such block."""
        for copies in self._copies:
            copies.copy(copy)


class StagedStep:
    """The memory that steps up to the size ``most`` are bound to in all stages; one at a time."""

    def __init__(self, stages: PagedStages, most: Arrays) -> None:
        session = stages.session
        bindings = [SessionBinding(stage) for stage in session.sessions]
        self._stages = [
            PagedBinding(binding, known, most, stages.resident(stage), device, stages.traffic)
            for stage, (binding, known, device) in enumerate(
                zip(bindings, stages.names, session.devices, strict=True)
            )
        ]
        own = [binding.io_binding for binding in bindings]
        self._crossing = CrossingBuffers(session.wiring, session.devices, own)

    @property
    def num_binds(self) -> int:
        """Binds of all stages since the start, without those of what stages hand on."""
        return sum(stage.num_binds for stage in self._stages)

    def put(self, arrays: Arrays, outputs: RowOutputs) -> None:
        """Set the inputs of the next run, and where its outputs go."""
        for stage in self._stages:
            stage.put(arrays, outputs)
        self._crossing.resize(arrays[names.INPUT_IDS].shape[-1])

    def run(self, stage: int, graph: int | None) -> None:
        """Compute one stage, after those before it; ``graph`` numbers a step that may be recorded."""
        self._stages[stage].run(graph)
        self._crossing.hand_on(stage)


class _BlockCopies:
    """Copies blocks of one stage's layers on its device, one at a time."""

    def __init__(self, graph: Path, pool: BlockPool, device: Device, traffic: Traffic) -> None:
        self._binding = SessionBinding(open_session(graph, 1, False, device=device))
        self._host = np.zeros((2, _COLUMN), np.int64)
        self._places = DeviceArray(self._host.shape, "int64", device, traffic)
        self._num_blocks = pool.scratch
        pool.bind(self._binding)
        for index, (name, shape) in enumerate(((names.SOURCE, (1,)), (names.TARGET, (1, 1)))):
            address = self._places.address + index * self._host.strides[0]
            self._binding.bind_input(name, device, ELEMENT_TYPES["int64"], shape, address)

    def copy(self, copy: BlockCopy) -> None:
        """Do what a plan says; ValueError where there is no such block."""
        if not all(0 <= block < self._num_blocks for block in (copy.source, copy.target)):
            raise ValueError(f"this is a bug: {copy} names a block outside {self._num_blocks}")
        self._host[:, 0] = copy.source, copy.target
        self._places.write(self._host)
        self._binding.run(None)


def _names(session: ort.InferenceSession) -> frozenset[str]:
    return frozenset(node.name for node in (*session.get_inputs(), *session.get_outputs()))


def _layers(known: frozenset[str]) -> list[int]:
    """The layers whose caches are among the names."""
    return sorted({layer for layer in map(names.layer_of, known) if layer is not None})
