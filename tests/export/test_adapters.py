"""A model with room for adapters says with each of them what torch says with it merged into the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, SlotCopy, StepPlan
from llm_grpc.errors import ManifestError
from llm_grpc.export.adapter import export_adapter
from llm_grpc.export.command import export
from llm_grpc.export.job import Job
from llm_grpc.export.progress import show_progress
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.source import find_source
from llm_grpc.export.stages import stages_of
from llm_grpc.export.verify_drive import run_all_rows
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.adapters import Adapters
from llm_grpc.runtime.paged_runner import PagedRunner
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.export.families import FAMILIES
from tests.export.paged_models import Paged, in_fp32
from tests.export.peft_adapters import matrices, merged, save_adapter
from tests.export.random_model import Eager, save_random_model
from tests.export.threefold import ids

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest: merging rounds, and adds up in another order."""

NUM_TOKENS = 40

Logits = NDArray[np.float32]
Run = Callable[[list[DecodeRow], PrefillChunk | None], Logits]


@pytest.fixture(scope="module")
def roomy(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("roomy") / "model"
    export(str(checkpoint), directory, "random", recipe=Recipe(max_adapter_rank=16))
    return directory


@pytest.fixture(scope="module")
def adapters(checkpoint: Path, roomy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapter directories of rank 4, numbered 1 and 2 by ``opened``."""
    folder = tmp_path_factory.mktemp("adapters")
    return [made(folder / str(seed), checkpoint, roomy, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def wanted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Eager]:
    """What torch says: the model alone, then with each of the adapters merged into it."""
    folder = tmp_path_factory.mktemp("merged")
    others = [merged(checkpoint, folder / str(seed), matrices(checkpoint, seed)) for seed in (1, 2)]
    return [Eager(directory) for directory in (checkpoint, *others)]


def made(folder: Path, checkpoint: Path, model_dir: Path, seed: int) -> Path:
    source = save_adapter(folder / "peft", matrices(checkpoint, seed))
    export_adapter(source, folder / "adapter", model_dir)
    return folder / "adapter"


def unverified(checkpoint: Path, model_dir: Path, recipe: Recipe) -> Path:
    model_dir.mkdir(parents=True)
    job = Job(find_source(str(checkpoint)), "model", model_dir, recipe)
    stages = stages_of(recipe)
    with show_progress(len(stages)) as progress:
        for _, stage in stages:
            stage(job, progress)
    return model_dir


def give(runner: SlotRunner | PagedRunner, adapters: list[Path]) -> None:
    """Load adapters as numbers 1 and on, and drop all others."""
    assert isinstance(runner.adapters, Adapters)
    found = {number: runner.adapters.read(path) for number, path in enumerate(adapters, start=1)}
    runner.adapters.arranged(found)()


def opened(model_dir: Path, adapters: list[Path]) -> SlotRunner:
    runner = SlotRunner(model_dir, load_manifest(model_dir), num_slots=4, context_tokens=128, threads=1)
    give(runner, adapters)
    return runner


def on_slots(runner: SlotRunner) -> Run:
    return lambda rows, chunk: run_all_rows(runner, rows, chunk)


def on_blocks(paged: Paged) -> Run:
    return lambda rows, chunk: paged.step(rows, [chunk] if chunk else [])


def assert_close(found: Logits, wanted: Logits, tolerance: float = TOLERANCE) -> None:
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def drive(run: Run, use: tuple[int, ...] = (0, 1, 2), start: int = 7) -> list[Logits]:
    """The logits of each sequence, ``use`` its adapters: prefilled one beside the others, then decoded."""
    texts = [ids(seed, NUM_TOKENS) for seed in range(len(use))]
    found: list[list[Logits]] = [[] for _ in use]
    done = [0] * len(use)
    for slot, text in enumerate(texts):
        for size in (start, 6):
            rows = [DecodeRow(s, texts[s][done[s]], done[s], use[s]) for s in range(slot)]
            chunk = PrefillChunk(slot, done[slot], text[done[slot] : done[slot] + size], adapter=use[slot])
            logits = run(rows, chunk)
            for s in range(slot):
                found[s].append(logits[s : s + 1])
                done[s] += 1
            found[slot].append(logits[slot:])
            done[slot] += size
    for _ in range(5):
        rows = [DecodeRow(s, texts[s][done[s]], done[s], use[s]) for s in range(len(use))]
        logits = run(rows, None)
        for s in range(len(use)):
            found[s].append(logits[s : s + 1])
            done[s] += 1
    return [np.concatenate(parts) for parts in found]


def assert_is_torch(run: Run, wanted: list[Eager], tolerance: float = TOLERANCE) -> None:
    for use in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        for seed, (adapter, logits) in enumerate(zip(use, drive(run, use), strict=True)):
            assert_close(logits, wanted[adapter].logits(ids(seed, NUM_TOKENS))[: len(logits)], tolerance)


def test_a_batch_of_adapters_is_torch_with_each_of_them_merged(
    roomy: Path, adapters: list[Path], wanted: list[Eager]
) -> None:
    alike = [eager.logits(ids(0, NUM_TOKENS)) for eager in wanted]
    assert np.abs(alike[1] - alike[0]).max() > 0.1 * np.abs(alike[0]).max()  # else this proves nothing
    assert_is_torch(on_slots(opened(roomy, adapters)), wanted)


def test_rows_of_a_mixed_batch_are_what_they_are_alone(
    roomy: Path, model_dir: Path, adapters: list[Path]
) -> None:
    mixed = drive(on_slots(opened(roomy, adapters)))
    bare = SlotRunner(model_dir, load_manifest(model_dir), num_slots=4, context_tokens=128, threads=1)
    assert np.array_equal(mixed[0], drive(on_slots(bare), (0, 0, 0))[0])  # exported without any room
    for number in (1, 2):
        alone = drive(on_slots(opened(roomy, adapters)), (number,) * 3)
        assert_close(mixed[number], alone[number], 1e-5)
        renamed = drive(on_slots(opened(roomy, adapters[number - 1 : number])), (1, 1, 1))
        assert_close(renamed[number], alone[number], 1e-5)


def test_adapters_come_and_go(roomy: Path, adapters: list[Path], wanted: list[Eager]) -> None:
    runner = opened(roomy, [])
    empty = drive(on_slots(runner), (0, 0, 0))
    give(runner, adapters[1:])
    text = ids(0, NUM_TOKENS)
    found = drive(on_slots(runner), (1, 0, 0))
    assert_close(found[0], wanted[2].logits(text)[: len(found[0])])
    give(runner, [])
    again = drive(on_slots(runner), (0, 0, 0))
    assert all(np.array_equal(a, b) for a, b in zip(empty, again, strict=True))


def test_a_dummy_row_writes_what_the_slot_of_an_adapter_holds(roomy: Path, adapters: list[Path]) -> None:
    def continued(*, beside: bool) -> Logits:
        runner = opened(roomy, adapters)
        run, text = on_slots(runner), ids(3, 30)
        for slot, adapter in ((3, 1), (0, 0), (2, 2)):
            run([], PrefillChunk(slot, 0, text[:8], adapter=adapter))
        plan = StepPlan((), (PrefillChunk(3, 8, text[8:9], adapter=1),), (), copies=(SlotCopy(3, 1, 8),))
        runner.logits(plan)
        if beside:  # slot 1, which holds what adapter 1 computed, lies between the two that decode
            run([DecodeRow(0, text[8], 8), DecodeRow(2, text[8], 8, 2)], None)
        return run([], PrefillChunk(1, 8, text[8:], adapter=1))

    assert np.array_equal(continued(beside=True), continued(beside=False))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_quantised_model_takes_adapters_in_fp32(
    weights: str, checkpoint: Path, adapters: list[Path], wanted: list[Eager], tmp_path: Path
) -> None:
    recipe = Recipe(weights=weights, max_adapter_rank=8)  # type: ignore[arg-type]
    run = on_slots(opened(unverified(checkpoint, tmp_path / "model", recipe), adapters))
    texts = [ids(seed, NUM_TOKENS) for seed in range(3)]

    def errors(found: list[Logits], use: tuple[int, ...]) -> list[float]:
        said = [wanted[u].logits(text)[: len(f)] for u, text, f in zip(use, texts, found, strict=True)]
        return [float(np.abs(f - s).mean() / np.abs(s).max()) for f, s in zip(found, said, strict=True)]

    with_them, without = drive(run), drive(run, (0, 0, 0))
    left, changed = errors(with_them, (0, 1, 2)), errors(without, (0, 1, 2))
    assert left[0] == changed[0]
    assert max(left[1:]) < 0.25 * min(changed[1:]), (left, changed)  # what is left is the rounding


def test_stages_take_the_adapters_of_their_layers(
    checkpoint: Path, adapters: list[Path], wanted: list[Eager], tmp_path: Path
) -> None:
    model_dir = unverified(checkpoint, tmp_path / "model", Recipe(stages=3, max_adapter_rank=8))
    manifest = load_manifest(model_dir)
    assert len(manifest.stages) == 3
    assert_is_torch(on_slots(opened(model_dir, adapters)), wanted)
    runner = SlotRunner(model_dir, manifest, 4, 128, threads=1, num_micro_batches=2)
    give(runner, adapters)
    assert_is_torch(on_slots(runner), wanted)


@pytest.mark.parametrize("stages", [1, 2])
def test_blocks_compute_adapters_as_slots_do(
    stages: int, checkpoint: Path, adapters: list[Path], tmp_path: Path
) -> None:
    recipe = Recipe(weights="fp16", max_adapter_rank=12)
    with in_fp32(unverified(checkpoint, tmp_path / "slots", recipe)) as (directory, manifest):
        slots = SlotRunner(directory, manifest, 4, 128, threads=1)
        give(slots, adapters)
        wanted = drive(on_slots(slots))
    recipe = replace(recipe, lowering="paged", stages=stages)
    with in_fp32(unverified(checkpoint, tmp_path / "paged", recipe)) as (directory, manifest):
        paged = Paged.of(directory, manifest)
        empty = drive(on_blocks(paged), (0, 0, 0))
        give(paged.runner, adapters)
        found = drive(on_blocks(paged))
        assert np.array_equal(found[0], empty[0])
        for logits, reference in zip(found, wanted, strict=True):
            assert_close(logits, reference)
        num_binds = paged.runner.num_binds
        give(paged.runner, [])
        assert paged.runner.num_binds == num_binds  # what a GPU has recorded stays true
        assert np.array_equal(drive(on_blocks(paged))[1], empty[1])


@pytest.mark.parametrize(
    ("name", "targets", "num_parts"),
    [
        ("gpt2", ("c_attn", "c_fc", "attn.c_proj", "mlp.c_proj"), 12),
        ("qwen2", ("q_proj", "v_proj", "down_proj"), 21),
        ("phi3", ("qkv_proj", "gate_up_proj"), 12),
        ("gemma2", ("k_proj", "o_proj", "up_proj"), 21),
        ("mixtral", ("q_proj", "v_proj"), 12),
    ],
)
def test_other_architectures(name: str, targets: tuple[str, ...], num_parts: int, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    checkpoint = save_random_model(tmp_path / "checkpoint", family.model_type, **family.config)
    tensors = matrices(checkpoint, 1, targets=targets)
    model_dir = unverified(checkpoint, tmp_path / "model", Recipe(max_adapter_rank=4))
    room = load_manifest(model_dir).adapters
    assert room
    assert len(room.modules) == num_parts
    export_adapter(save_adapter(tmp_path / "peft", tensors), tmp_path / "adapter", model_dir)
    found = drive(on_slots(opened(model_dir, [tmp_path / "adapter"])), (1, 0))
    for directory, logits, seed in (
        (merged(checkpoint, tmp_path / "merged", tensors), found[0], 0),
        (checkpoint, found[1], 1),
    ):
        assert_close(logits, Eager(directory).logits(ids(seed, NUM_TOKENS))[: len(logits)])


def test_scales_are_those_that_each_module_has(checkpoint: Path, roomy: Path, tmp_path: Path) -> None:
    """Rank and alpha by pattern, stabilised; k and v of one merged product have different ranks."""
    tensors = matrices(checkpoint, 5, rank=2, targets=("k_proj", "layers.1.mlp.up_proj"))
    wide = matrices(checkpoint, 6, rank=6, targets=("v_proj",))
    source = save_adapter(
        tmp_path / "peft", {**tensors, **wide}, r=2, lora_alpha=3, use_rslora=True,
        rank_pattern={"v_proj": 6}, alpha_pattern={r"layers\.1\.self_attn\.v_proj": 5, "up_proj": 1},
        target_modules=["k_proj", "v_proj", "up_proj"],
    )  # fmt: skip
    assert export_adapter(source, tmp_path / "adapter", roomy).rank == 6
    changed = checkpoint
    for number, (part, scale) in enumerate(
        [
            ({n: t for n, t in tensors.items() if "k_proj" in n}, 3 / 2**0.5),
            ({n: t for n, t in tensors.items() if "up_proj" in n}, 1 / 2**0.5),
            ({n: t for n, t in wide.items() if "layers.1." not in n}, 3 / 6**0.5),
            ({n: t for n, t in wide.items() if "layers.1." in n}, 5 / 6**0.5),
        ]
    ):
        changed = merged(changed, tmp_path / f"merged-{number}", part, scale)
    (found,) = drive(on_slots(opened(roomy, [tmp_path / "adapter"])), (1,))
    assert_close(found, Eager(changed).logits(ids(0, NUM_TOKENS))[: len(found)])


def test_the_identity_is_that_of_the_weights_in_any_format(
    checkpoint: Path, roomy: Path, adapters: list[Path], tmp_path: Path
) -> None:
    small = unverified(checkpoint, tmp_path / "int8", Recipe(weights="int8", max_adapter_rank=4))
    found = [load_manifest(path).adapters for path in (roomy, small)]
    assert found[0]
    assert found[1]
    assert found[0].base == found[1].base
    other = save_random_model(tmp_path / "other", num_hidden_layers=3)
    model = Eager(other)._model
    model.model.norm.weight.data.add_(1e-3)
    model.save_pretrained(other)
    opened(small, adapters[:1])
    changed = unverified(other, tmp_path / "changed", Recipe(max_adapter_rank=16))
    with pytest.raises(ManifestError, match="is an adapter of another model: export it for this one"):
        opened(changed, adapters[:1])
