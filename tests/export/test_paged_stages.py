"""A paged model in stages is bit for bit the whole model, in turn and with micro-batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_grpc import graph_names as names
from llm_grpc.devices import CPU
from llm_grpc.engine.step_plan import BlockCopy, BlockGrant, DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.errors import StartupError
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.export.verify_drive import Logits
from llm_grpc.manifest import Manifest, load_manifest
from llm_grpc.sampling_params import SamplingParams
from tests.export.paged_models import BLOCK, Paged, exported, in_fp32
from tests.export.random_model import save_random_model
from tests.export.threefold import ids

Models = Callable[[int], tuple[Path, Manifest]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """``models(stages)`` is one random model of three layers, exported once for each number of stages."""
    folder = tmp_path_factory.mktemp("stages")
    checkpoint = save_random_model(folder / "checkpoint")
    found: dict[int, tuple[Path, Manifest]] = {}
    with ExitStack() as stack:

        def model(stages: int) -> tuple[Path, Manifest]:
            if stages not in found:
                directory = exported(checkpoint, folder / str(stages), "paged", num_stages=stages)
                found[stages] = stack.enter_context(in_fp32(directory))
            return found[stages]

        yield model


def drive(paged: Paged, seed: int = 1) -> list[Logits]:
    """Steps of all kinds: several chunks, blocks that are shared and copied, rows alone and beside chunks."""
    tokens = ids(seed, 400)
    lengths = {0: 37, 2: 9, 3: 50}
    found = [
        paged.step(chunks=[PrefillChunk(slot, 0, tokens[slot : slot + n]) for slot, n in lengths.items()])
    ]
    shared = paged.share(1, 0, 2)
    found.append(paged.step([DecodeRow(0, 7, 37)], [PrefillChunk(1, 2 * BLOCK, tokens[60:73])], shared))
    own = paged.free.pop()
    grants = (*paged.share(4, 3, 1), BlockGrant(4, 1, (own,)))
    paged.tables[4].append(own)
    copies = (BlockCopy(paged.tables[3][1], own),)
    found.append(paged.step(chunks=[PrefillChunk(4, 20, tokens[80:88])], grants=grants, copies=copies))
    for at in range(3):
        rows = [DecodeRow(3, tokens[90 + at], 50 + at), DecodeRow(0, tokens[95 + at], 38 + at)]
        rows.append(DecodeRow(4, tokens[99 + at], 28 + at))
        found.append(paged.step(rows))
        chunks = [PrefillChunk(slot, start + 6 * at, tokens[100 + 6 * at : 106 + 6 * at])
                  for slot, start in ((2, 9), (5, 0))]  # fmt: skip
        found.append(paged.step([DecodeRow(1, tokens[110 + at], 45 + at)], chunks))
    found.append(
        paged.step([DecodeRow(slot, 5, at) for slot, at in ((5, 18), (2, 27), (0, 41), (1, 48), (4, 31))])
    )
    return found


def assert_equal(found: list[Logits], wanted: list[Logits]) -> None:
    assert [np.array_equal(a, b) for a, b in zip(found, wanted, strict=True)] == [True] * len(wanted)


@pytest.mark.parametrize("stages", [2, 3])
def test_stages_are_the_whole_model(models: Models, stages: int) -> None:
    directory, manifest = models(stages)
    assert sum(manifest.stage_layers) == 3
    assert {names.blocks_graph(stage, stages) for stage in range(stages)} <= {
        path.name for path in directory.iterdir()
    }
    paged = Paged.of(directory, manifest, devices=[CPU] * stages)
    assert_equal(drive(paged), drive(Paged.of(*models(1))))


@pytest.mark.parametrize(("stages", "num_micro_batches"), [(2, 2), (3, 3), (2, 4), (3, 2)])
def test_micro_batches_in_flight_are_those_of_the_whole_model(
    models: Models, stages: int, num_micro_batches: int
) -> None:
    whole, staged = (Paged.of(*models(n), num_micro_batches=num_micro_batches) for n in (1, stages))
    assert_equal(drive(staged), drive(whole))


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_tokens_come_in_the_order_of_the_samples(models: Models, num_micro_batches: int) -> None:
    """Greedy and drawn, of rows whose slots are in another order, beside a chunk."""
    prompt = ids(3, 30)
    kinds = [SamplingParams(1), SamplingParams(1, temperature=1.2, seed=4)] * 2
    said = []
    for paged in (Paged.of(*models(1)), Paged.of(*models(2), num_micro_batches=num_micro_batches)):
        paged.step(chunks=[PrefillChunk(slot, 0, prompt[slot : slot + 12]) for slot in range(3)])
        rows = tuple(DecodeRow(slot, prompt[20 + slot], 12) for slot in (2, 0, 1))
        chunk = PrefillChunk(3, 0, prompt[5:14])
        samples = [
            Sample(i, row, i, kind) for i, (row, kind) in enumerate(zip((11, 1, 0, 2), kinds, strict=True))
        ]
        plan = StepPlan(rows, (chunk,), tuple(samples), grants=paged.grants(3, 9))
        first = paged.runner.run(plan).tokens
        alone = StepPlan(tuple(row._replace(position=13) for row in rows), (), tuple(samples[1:]))
        alone = replace(alone, samples=tuple(s._replace(row=2 - i) for i, s in enumerate(alone.samples)))
        said.append((list(first), list(paged.runner.run(alone).tokens)))
    assert said[0] == said[1]


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_step_of_a_size_is_bound_once_and_recorded_once(models: Models, num_micro_batches: int) -> None:
    paged = Paged.of(*models(2), num_micro_batches=num_micro_batches)
    for slot in range(4):
        paged.step(chunks=[PrefillChunk(slot, 0, ids(slot, 10))])
    plans = [[DecodeRow(slot, 1, at) for slot in range(4)] for at in range(10, 13)]
    paged.step(plans[0])
    binds, graphs = paged.runner.num_binds, paged.runner.num_graphs
    assert graphs == num_micro_batches
    for rows in plans[1:]:
        paged.step(rows)
    assert (paged.runner.num_binds, paged.runner.num_graphs) == (binds, graphs)


def test_devices_that_do_not_fit_the_stages(models: Models) -> None:
    with pytest.raises(StartupError, match="device is cpu,cpu,cpu, and model has 2 stages"):
        Paged.of(*models(2), devices=[CPU] * 3)
    with pytest.raises(StartupError, match="device is cpu,cpu, and model is not cut into stages"):
        Paged.of(*models(1), devices=[CPU] * 2)


def test_an_export_in_stages_is_verified(tmp_path: Path) -> None:
    source = save_random_model(tmp_path / "source")
    recipe = Recipe("fp16", lowering="paged", stages=2)
    export(str(source), tmp_path / "model", "model", VerifyOptions(num_tokens=2, allow_inexact=True), recipe)
    manifest = load_manifest(tmp_path / "model")
    assert manifest.verification
    assert {"blocks-1-of-2.onnx", "blocks-2-of-2.onnx"} <= manifest.files.keys()
    assert names.BLOCKS_GRAPH not in manifest.files
