"""Drawing tokens on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llm_grpc import graph_names as names
from llm_grpc.devices import Device
from llm_grpc.engine.step_plan import Sample, StepPlan, StepResult
from llm_grpc.runtime.adjustment import changes_logits
from llm_grpc.runtime.device_memory import ELEMENT_TYPES, DeviceArray, SessionBinding, Traffic
from llm_grpc.runtime.paged_bindings import RowOutputs
from llm_grpc.runtime.sampler import sample_tokens, uniform
from llm_grpc.runtime.session import open_session
from llm_grpc.runtime.token_scores import samples_result, scores

_COLUMN = 32
"""Rows are filled up to a multiple of this: each value's column begins at an aligned address."""

_IDLE = (1.0, 0.0, 1.0, 0.0)
"""Values of a row whose token nobody asked for."""


class DeviceSampler:
    """Chooses tokens on the device: the likeliest, or by the graph of ``sampler.onnx``.

    Its graph knows temperature, top_k and top_p. Rows that are asked anything else, and those that it leaves
    undecided, are read and drawn on the host.

    Raises:
        ManifestError: the graph cannot be loaded.
    """

    def __init__(self, model_dir: Path, device: Device, traffic: Traffic) -> None:
        self._session = open_session(model_dir / names.SAMPLER_GRAPH, 1, False, device=device)
        self._device, self._traffic = device, traffic
        self._bound: dict[RowOutputs, _Bound] = {}
        self.num_undecided = 0
        """Rows that the graph left to the host; a counter for tests and benchmarks."""

    def result(self, outputs: RowOutputs, rows: Sequence[int], plan: StepPlan) -> StepResult:
        """What a step found, once it is computed: logits of ``plan.logit_rows`` are ``rows`` of ``outputs``.

        Raises:
            ValueError: a mask has no token.
        """
        here, on_host = _divided(rows, plan.samples)
        tokens = dict(self._chosen(outputs, rows, {place: plan.samples[place] for place in here}))
        logits = outputs.logits.read([rows[place] for place in on_host])
        found = samples_result([plan.samples[place] for place in on_host], logits)
        tokens.update(zip(on_host, found.tokens, strict=True))
        return StepResult(
            [tokens[place] for place in range(len(plan.samples))],
            {on_host[at]: score for at, score in found.logprobs.items()},
            scores(outputs.logits.read(rows[len(plan.samples) :]), plan.scores),
        )

    def draw(self, outputs: RowOutputs, rows: Sequence[int], samples: Sequence[Sample]) -> list[int]:
        """A token for each of ``samples``, whose logits are those of ``rows``, no two of them the same."""
        if outputs not in self._bound:
            self._bound[outputs] = _Bound(SessionBinding(self._session), outputs, self._device, self._traffic)
        bound = self._bound[outputs]
        bound.draw(rows, samples)
        tokens, undecided = bound.tokens.read(), bound.undecided.read()
        chosen = [int(tokens[row]) for row in rows]
        left = [place for place, row in enumerate(rows) if undecided[row]]
        if left:
            self.num_undecided += len(left)
            logits = outputs.logits.read([rows[place] for place in left])
            for place, token in zip(left, sample_tokens(logits, [samples[i] for i in left]), strict=True):
                chosen[place] = token
        return chosen

    def _chosen(
        self, outputs: RowOutputs, rows: Sequence[int], samples: Mapping[int, Sample]
    ) -> Iterator[tuple[int, int]]:
        """Places of ``samples`` with their tokens."""
        drawn = [place for place, sample in samples.items() if sample.params.temperature != 0]
        if len(drawn) < len(samples):
            greedy = outputs.greedy.read()
            yield from ((place, int(greedy[rows[place]])) for place in samples.keys() - drawn)
        if drawn:
            own = [rows[place] for place in drawn]
            yield from zip(drawn, self.draw(outputs, own, [samples[place] for place in drawn]), strict=True)


def _divided(rows: Sequence[int], samples: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """Places of samples that the device can choose for, a row once, and of the others."""
    here: dict[int, int] = {}
    on_host: list[int] = []
    for place, (row, sample) in enumerate(zip(rows, samples, strict=False)):
        if row in here or not _is_plain(sample):
            on_host.append(place)
        else:
            here[row] = place
    return list(here.values()), on_host


def _is_plain(sample: Sample) -> bool:
    """Whether the greedy token, or temperature, top_k and top_p, are all that is asked."""
    params = sample.params
    is_cut = params.temperature != 0 and (params.min_p > 0 or params.typical_p < 1)
    return params.num_logprobs is None and not is_cut and not changes_logits(sample)


class _Bound:
    """The memory of steps of one number of rows."""

    def __init__(
        self, binding: SessionBinding, outputs: RowOutputs, device: Device, traffic: Traffic
    ) -> None:
        rows, logits = outputs.rows, outputs.logits.array
        width = -(-rows // _COLUMN) * _COLUMN
        self._host = np.empty((len(names.SAMPLER_ROWS), width))
        self._values = DeviceArray(self._host.shape, "float64", device, traffic)
        self.tokens = DeviceArray((rows,), "int64", device, traffic)
        self.undecided = DeviceArray((rows,), "bool", device, traffic)
        self._binding = binding
        wide = (rows, *logits.shape[1:])
        binding.bind_input(names.LOGITS, device, ELEMENT_TYPES[logits.dtype], wide, logits.address)
        for index, name in enumerate(names.SAMPLER_ROWS):
            address = self._values.address + index * width * self._host.itemsize
            binding.bind_input(name, device, ELEMENT_TYPES["float64"], (rows,), address)
        for name, array in ((names.TOKENS, self.tokens), (names.UNDECIDED, self.undecided)):
            binding.bind_output(name, device, ELEMENT_TYPES[array.dtype], array.shape, array.address)

    def draw(self, rows: Sequence[int], samples: Sequence[Sample]) -> None:
        """Draw for every row, with the parameters of ``samples`` for ``rows``."""
        self._host[...] = np.array(_IDLE)[:, None]
        for row, sample in zip(rows, samples, strict=True):
            params = sample.params
            self._host[:, row] = params.temperature, params.top_k, params.top_p, uniform(sample)
        self._values.write(self._host)
        self._binding.run(None)
