"""The model runner of the paged lowering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_grpc import graph_names as names
from llm_grpc.devices import CPU, Device
from llm_grpc.engine.step_plan import BlockCopy, StepPlan
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.runtime.device_memory import ELEMENT_TYPES, DeviceArray, SessionBinding, Traffic
from llm_grpc.runtime.device_sampler import DeviceSampler
from llm_grpc.runtime.interface import check_interface
from llm_grpc.runtime.logits_memory import LogitsMemory, most_rows
from llm_grpc.runtime.paged_bindings import BlockPool, PagedBinding, RowOutputs, largest
from llm_grpc.runtime.paged_step import BlockTables, PagedStep, bucket_of
from llm_grpc.runtime.session import RECORDED, is_for_gpu, open_session

MAX_CHUNK_TOKENS = 1024
"""Longest chunk that a scheduler may plan for this lowering: longer ones near a full context are reported to
read memory that is not theirs (onnxruntime 1.31, H200)."""


_COLUMN = 32
"""int64 numbers from one aligned address to the next."""


class PagedRunner:
    """Runs plans on a graph with one PagedAttention node a layer, over blocks of keys and values.

    Steps without chunks are filled up to one of a few sizes (``bucket_of``), each with inputs of its own at
    addresses that stay, and on a GPU each is recorded once and replayed if the manifest says that it can be.
    Other steps share one memory for inputs, and all steps one for logits. Tokens are chosen on the device:
    their ids come back, and logits only of rows where the device cannot tell what the host would draw.

    ``num_blocks`` of the cache are the scheduler's; there is one more, for rows that fill a step up.

    Raises:
        ManifestError: the graph is not what the manifest says, or needs a GPU.
        StartupError: there is no memory for the cache.
    """

    def __init__(  # noqa: PLR0913 - the limits of one server
        self,
        model_dir: Path,
        manifest: Manifest,
        num_blocks: int,
        max_running: int,
        context_tokens: int,
        max_step_tokens: int,
        device: Device = CPU,
        *,
        threads: int = 0,
        packs: bool = True,
    ) -> None:
        if manifest.block_size is None:
            raise ManifestError(
                f"{model_dir} has the lowering {manifest.lowering}, and not paged: export it so"
            )
        if device.kind == "cpu" and is_for_gpu(manifest):
            raise ManifestError(
                f"{model_dir} computes in {manifest.kv_cache.dtype}, which needs an NVIDIA GPU, and the "
                "device is cpu: export it in fp32"
            )
        self._records = manifest.recordable
        options = RECORDED if self._records else None
        self._session = open_session(
            model_dir / manifest.graph, threads, packs, manifest.weights_bytes, device, options
        )
        check_interface(self._session, manifest)
        self._inputs = frozenset(node.name for node in self._session.get_inputs())
        self._vocabulary, self._device = manifest.vocabulary_size, device
        self._context_tokens, self._max_step_tokens = context_tokens, max_step_tokens
        self.traffic = Traffic()
        self._pool = BlockPool(manifest.kv_cache, num_blocks, manifest.block_size, device, self.traffic)
        self._places = -(-context_tokens // manifest.block_size)
        self._tables = BlockTables(max_running, self._places, manifest.block_size, num_blocks)
        self._max_running = max_running
        self.sampler = DeviceSampler(model_dir, device, self.traffic)
        self._copies = _BlockCopies(model_dir, device, self._pool, self.traffic)
        self._logits = LogitsMemory(most_rows(max_running), self._vocabulary, device, self.traffic)
        self._outputs: dict[int, RowOutputs] = {}
        self._bindings: dict[int, PagedBinding] = {}
        self._graphs: dict[tuple[int, bool], int] = {}

    @property
    def num_binds(self) -> int:
        """Binds since the start; a counter for tests and benchmarks."""
        return sum(binding.num_binds for binding in self._bindings.values())

    @property
    def num_graphs(self) -> int:
        """Steps that are recorded, or would be on a GPU."""
        return len(self._graphs)

    def run(self, plan: StepPlan) -> Sequence[int]:
        """Compute the plan and return one token id for each of its samples.

        Raises:
            ValueError: the plan is one that no scheduler may make.
        """
        step, outputs = self._compute(plan)
        if not plan.samples:
            return []
        greedy = outputs.greedy.read()
        tokens = [int(greedy[row]) for row in step.rows]
        drawn = [place for place, sample in enumerate(plan.samples) if sample.params.temperature != 0]
        if drawn:
            rows = [step.rows[place] for place in drawn]
            chosen = self.sampler.draw(outputs, rows, [plan.samples[place] for place in drawn])
            for place, token in zip(drawn, chosen, strict=True):
                tokens[place] = token
        return tokens

    def logits(self, plan: StepPlan) -> NDArray[np.float32]:
        """Compute the plan and return the logits ``[samples, vocabulary]``.

        Raises:
            ValueError: the plan is one that no scheduler may make.
        """
        step, outputs = self._compute(plan)
        return outputs.logits.read(step.rows)

    def _compute(self, plan: StepPlan) -> tuple[PagedStep, RowOutputs]:
        self._check(plan)
        for grant in plan.grants:
            self._tables.grant(grant)
        for copy in plan.block_copies:
            self._copies.copy(copy)
        if plan.chunks:
            step = self._tables.mixed_step(plan)
        else:
            step = self._tables.decode_step(plan, self._context_tokens)
        outputs = self._outputs_of(step.num_rows)
        binding = self._binding_of(step)
        binding.put(step.arrays, outputs)
        binding.run(self._graph_of(step))
        return step, outputs

    def _check(self, plan: StepPlan) -> None:
        if plan.copies or plan.releases:
            raise ValueError("this is a bug: copies and releases of slots, and the lowering is paged")
        if not 0 < plan.num_tokens <= self._max_step_tokens:
            raise ValueError(
                f"this is a bug: a step of {plan.num_tokens} tokens, and the limit is {self._max_step_tokens}"
            )
        if len(plan.decode) + len(plan.chunks) > self._max_running:
            raise ValueError(f"this is a bug: more sequences in a step than slots, {self._max_running}")

    def _outputs_of(self, rows: int) -> RowOutputs:
        if rows not in self._outputs:
            logits = self._logits
            if rows > logits.array.shape[0]:  # of verification, which asks for all rows
                logits = LogitsMemory(rows, self._vocabulary, self._device, self.traffic)
            self._outputs[rows] = RowOutputs(rows, logits, self._device, self.traffic)
        return self._outputs[rows]

    def _binding_of(self, step: PagedStep) -> PagedBinding:
        """That of the step's size, or of all steps with chunks, under 0."""
        key = step.num_rows if step.decodes else 0
        if key not in self._bindings:
            tokens, sequences = (key, key) if key else (self._max_step_tokens, self._max_running)
            most = largest(tokens, sequences, self._places, bucket_of(tokens))
            binding = SessionBinding(self._session)
            self._bindings[key] = PagedBinding(
                binding, self._inputs, most, self._pool, self._device, self.traffic
            )
        return self._bindings[key]

    def _graph_of(self, step: PagedStep) -> int | None:
        """The number of the recorded step; None where steps differ in shape, or values inside of them do."""
        if not (self._records and step.decodes):
            return None
        return self._graphs.setdefault((step.num_rows, step.is_long), len(self._graphs) + 1)


class _BlockCopies:
    """Copies blocks on the device, one at a time."""

    def __init__(self, model_dir: Path, device: Device, pool: BlockPool, traffic: Traffic) -> None:
        session = open_session(model_dir / names.BLOCKS_GRAPH, 1, False, device=device)
        self._binding = SessionBinding(session)
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
