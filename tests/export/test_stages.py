"""A model in stages is bit for bit the whole model, in turn and with micro-batches in flight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from llm_grpc.cli.main import main
from llm_grpc.client import Client
from llm_grpc.devices import CPU, Device
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, SlotCopy, StepPlan
from llm_grpc.errors import ExportError, ManifestError, StartupError
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe, Weights
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.export.verify_drive import Logits
from llm_grpc.manifest import Manifest, load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.sampling_params import SamplingParams
from tests.export.families import FAMILIES, Family
from tests.export.random_model import save_random_model
from tests.export.threefold import ids
from tests.rpc.process import ServerProcess

ANY = VerifyOptions(num_tokens=2, allow_inexact=True)
GREEDY = SamplingParams(1)
CHECKPOINT = Path(__file__).parents[2] / "models" / "embedded" / "checkpoint"
DEMO = Path(__file__).parents[2] / "llm_grpc" / "cli" / "demo.json"
PROMPTS = [item["prompt"] for item in json.loads(DEMO.read_text())]
NUM_SLOTS, CONTEXT = 5, 96

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """``embedded(stages)`` is the embedded model's checkpoint, exported once for each number of stages."""
    folder = tmp_path_factory.mktemp("embedded")

    def exported(stages: int) -> Path:
        target = folder / str(stages)
        if not target.exists():
            export(str(CHECKPOINT), target, "embedded", ANY, Recipe(stages=stages))
        return target

    return exported


def make_runner(model_dir: Path, num_micro_batches: int = 0, manifest: Manifest | None = None) -> SlotRunner:
    return SlotRunner(
        model_dir,
        manifest or load_manifest(model_dir),
        NUM_SLOTS,
        CONTEXT,
        threads=1,
        num_micro_batches=num_micro_batches,
    )


def step(
    runner: SlotRunner,
    rows: tuple[DecodeRow, ...] = (),
    chunk: PrefillChunk | None = None,
    copies: tuple[SlotCopy, ...] = (),
) -> Logits:
    """The logits of every token, those of the last ones first; a copy."""
    num_tokens = len(rows) + (len(chunk.tokens) if chunk else 0)
    samples = tuple(Sample(row, row, 0, GREEDY) for row in reversed(range(num_tokens)))
    return runner.logits(StepPlan(rows, (chunk,) if chunk else (), samples, copies)).copy()


def drive(runner: SlotRunner, seed: int = 1) -> list[Logits]:
    """Steps of all kinds: chunks, a copy, ragged rows in another order than their slots, holes, both."""
    tokens = ids(seed, 200)
    found = [step(runner, (), PrefillChunk(slot, 0, tokens[slot : slot + 9 + slot])) for slot in (0, 1, 3)]
    found.append(step(runner, (), PrefillChunk(4, 6, tokens[50:53]), (SlotCopy(1, 4, 6),)))
    for at in range(4):
        rows = tuple(DecodeRow(slot, tokens[60 + at * slot], 9 + slot + at) for slot in (3, 0, 1))
        found.append(step(runner, rows, PrefillChunk(2, 5 * at, tokens[70 + 5 * at : 75 + 5 * at])))
    found.append(step(runner, (DecodeRow(0, tokens[99], 13), DecodeRow(4, tokens[98], 9))))
    found.append(step(runner, (DecodeRow(4, tokens[97], 10),)))
    return found


def assert_equal(found: list[Logits], wanted: list[Logits]) -> None:
    assert [np.array_equal(a, b) for a, b in zip(found, wanted, strict=True)] == [True] * len(wanted)


def greedy(runner: SlotRunner, num_steps: int = 12) -> list[int]:
    """What three prompts go on with, decoded together beside a prompt of a fourth one."""
    prompts = [ids(seed, 6 + 3 * seed) for seed in range(3)]
    said = [[int(step(runner, (), PrefillChunk(slot, 0, p))[0].argmax())] for slot, p in enumerate(prompts)]
    fourth = ids(9, 6 * num_steps)
    for at in range(num_steps):
        rows = tuple(DecodeRow(slot, said[slot][-1], len(prompts[slot]) + at) for slot in range(3))
        chunk = PrefillChunk(3, 6 * at, fourth[6 * at : 6 * at + 6])
        plan = StepPlan(rows, (chunk,), tuple(Sample(slot, slot, at, GREEDY) for slot in range(3)))
        for tokens, token in zip(said, runner.run(plan).tokens, strict=True):
            tokens.append(token)
    return [token for tokens in said for token in tokens]


@pytest.mark.parametrize("stages", [2, 3])
def test_stages_are_the_whole_model(embedded: Export, stages: int) -> None:
    manifest = load_manifest(embedded(stages))
    assert manifest.stages == tuple(f"model-{i}-of-{stages}.onnx" for i in range(1, stages + 1))
    assert manifest.graph == manifest.stages[0]
    assert manifest.weights_bytes == sum(path.stat().st_size for path in embedded(stages).glob("*.onnx"))
    assert_equal(drive(make_runner(embedded(stages))), drive(make_runner(embedded(1))))


@pytest.mark.parametrize(("stages", "num_micro_batches"), [(2, 2), (3, 3), (2, 4), (3, 2)])
def test_micro_batches_in_flight_are_those_of_the_whole_model(
    embedded: Export, stages: int, num_micro_batches: int
) -> None:
    whole, staged = (make_runner(embedded(count), num_micro_batches) for count in (1, stages))
    assert_equal(drive(staged), drive(whole))


def test_micro_batches_change_no_token(embedded: Export) -> None:
    assert greedy(make_runner(embedded(2), 2)) == greedy(make_runner(embedded(1)))


def test_a_step_is_divided_where_devices_differ(embedded: Export) -> None:
    assert len(make_runner(embedded(2))._bindings) == 1
    assert len(make_runner(embedded(2), 3)._bindings) == 3


CASES: list[tuple[str, Weights]] = [("gpt2", "fp32"), ("llama", "int8"), ("gemma2", "int4")]
SLOW_CASES: list[tuple[str, Weights]] = [("mixtral", "int8"), ("gpt2", "int4"), ("qwen3", "bf16")]


@pytest.mark.parametrize(
    ("name", "weights"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
)
def test_any_weights_of_any_architecture(name: str, weights: Weights, tmp_path: Path) -> None:
    """A stage has its layers' weights in their format; half precision runs as the verification runs it."""
    (family,) = (family for family in FAMILIES if family.name == name)
    source = save_random_model(tmp_path / "source", family.model_type, **family.config)
    assert_stages_are_whole(source, weights, tmp_path)


def test_an_int8_cache(tmp_path: Path) -> None:
    """Its places are computed from the number of tokens, in every stage."""
    (tmp_path / "text.txt").write_bytes(bytes(b % 94 + 32 for b in ids(11, 4000)))
    source = save_random_model(tmp_path / "source")
    recipe = Recipe("int8", tmp_path / "text.txt", kv_cache="int8")
    for stages in (1, 2):
        export(str(source), tmp_path / str(stages), "model", ANY, replace(recipe, stages=stages))
    for num_micro_batches in (1, 2):
        found, wanted = (make_runner(tmp_path / name, num_micro_batches) for name in ("2", "1"))
        assert_equal(drive(found), drive(wanted))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
@pytest.mark.parametrize("family", [pytest.param(family, id=family.name) for family in FAMILIES])
def test_every_family(family: Family, tmp_path: Path) -> None:
    """Those that are exported at all can be cut, and no more crosses than two rows a token."""
    source = save_random_model(tmp_path / "source", family.model_type, **family.config)
    try:
        export(str(source), tmp_path / "1", "model", ANY)
    except ExportError:
        return
    assert_stages_are_whole(source, "fp32", tmp_path)


def assert_stages_are_whole(source: Path, weights: Weights, folder: Path) -> None:
    """Exported in three stages; half precision, which needs a GPU, is run by the verification alone."""
    whole, staged = folder / "1", folder / "3"
    for target, stages in ((whole, 1), (staged, 3)):
        if not target.exists():
            export(str(source), target, "model", ANY, Recipe(weights, stages=stages))
    for name in load_manifest(staged).graphs:
        graph = onnx.load(staged / name, load_external_data=False).graph
        assert len([value for value in graph.output if value.name.startswith("stage.")]) <= 2
    if weights not in {"fp16", "bf16"}:
        assert_equal(drive(make_runner(staged)), drive(make_runner(whole)))


def test_a_server_answers_as_with_the_whole_model(embedded: Export) -> None:
    answers = []
    for stages, device in ((1, "cpu"), (2, "cpu,cpu")):
        flags = (f"--model={embedded(stages)}", "--threads=1", f"--device={device}")
        with ServerProcess(*flags) as server, Client(server.address) as client:
            answers.append([client.generate(prompt, max_tokens=24).generated_text for prompt in PROMPTS])
    assert answers[0] == answers[1]
    assert all(answers[0])


def test_a_fault_in_one_micro_batch_fails_its_step_alone(embedded: Export) -> None:
    """The first stage meets a token that there is not, while the second one computes the rows before it."""
    runner, fresh = make_runner(embedded(2), 2), make_runner(embedded(2), 2)
    step(runner, (), PrefillChunk(0, 0, [5, 6, 7]))
    step(fresh, (), PrefillChunk(0, 0, [5, 6, 7]))
    with pytest.raises(Exception, match="Gather"):
        step(runner, (DecodeRow(0, 8, 3),), PrefillChunk(1, 0, [9, 10**6, 11]))
    assert_equal(drive(runner), drive(fresh))


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_fault_in_the_second_stage_fails_its_step_alone(embedded: Export, num_micro_batches: int) -> None:
    """What one stage hands on has another shape than the next one's memory for it."""
    runner, fresh = (make_runner(embedded(2), num_micro_batches) for _ in range(2))
    rows = (DecodeRow(0, 8, 3), DecodeRow(1, 8, 3))
    for at in (runner, fresh):
        for slot in (0, 1):
            step(at, (), PrefillChunk(slot, 0, [5, 6, 7]))
        step(at, rows)
    narrow = ort.OrtValue.ortvalue_from_shape_and_type([1, 1, 5], 1)
    runner._bindings[-1]._binding._bindings[1].bind_ortvalue_input("stage.0.0", narrow)
    with pytest.raises(Exception, match=r"[Ii]nvalid|shape|dimension"):
        step(runner, rows)
    assert_equal(drive(runner), drive(fresh))


def changed(source: Path, target: Path, **fields: object) -> Manifest:
    """A copy of a model directory, and its manifest with other values."""
    if not target.exists():
        shutil.copytree(source, target)
    return load_manifest(target).model_copy(update=fields)


def test_stages_that_do_not_belong_together(embedded: Export, tmp_path: Path) -> None:
    one, two = load_manifest(embedded(2)).stages
    for stages, says in (
        ((two, one), "stage 1 reads stage.0.0, and none before writes it: export again"),
        ((one, one), "stages 1 and 2 both have present.0.key.decode: export again"),
        ((one,), "the graph's logits is missing"),
    ):
        manifest = changed(embedded(2), tmp_path / "model", stages=stages)
        with pytest.raises(ManifestError, match=says):
            make_runner(tmp_path / "model", manifest=manifest)


def test_a_stage_of_another_export(embedded: Export, tmp_path: Path) -> None:
    manifest = changed(embedded(2), tmp_path / "model")
    source = save_random_model(tmp_path / "source", vocab_size=300)
    export(str(source), tmp_path / "other", "other", ANY, Recipe(stages=2))
    shutil.copy(tmp_path / "other" / manifest.stages[1], tmp_path / "model")
    with pytest.raises(ManifestError, match="export again"):
        make_runner(tmp_path / "model", manifest=manifest)


@pytest.mark.parametrize(
    ("stages", "num_devices", "says"),
    [
        (1, 2, "device is cpu,cpu, and embedded is not cut into stages: .* export it with --stages 2"),
        (2, 3, "device is cpu,cpu,cpu, and embedded has 2 stages: .* export it with --stages 3"),
    ],
)
def test_devices_that_do_not_fit_the_stages(
    embedded: Export, stages: int, num_devices: int, says: str
) -> None:
    with pytest.raises(StartupError, match=says):
        SlotRunner(
            embedded(stages), load_manifest(embedded(stages)), 1, 16, threads=1, devices=[CPU] * num_devices
        )


def test_more_stages_than_layers(tmp_path: Path) -> None:
    source = save_random_model(tmp_path / "source")
    with pytest.raises(ExportError, match=r"^--stages is 4, and .*source has 3 layers$"):
        export(str(source), tmp_path / "model", "model", ANY, Recipe(stages=4))
    with pytest.raises(ExportError, match="--stages is 0, and must be at least 1"):
        Recipe(stages=0)


def test_what_crosses_is_copied_where_devices_differ(embedded: Export) -> None:
    """Two numbers of the processor stand for two devices: each has a buffer of its own."""
    manifest = load_manifest(embedded(2))
    devices = [Device("cpu", 0), Device("cpu", 1)]
    runner = SlotRunner(embedded(2), manifest, NUM_SLOTS, CONTEXT, threads=1, devices=devices)
    assert len(runner._bindings) == 2, "a micro-batch for each device"
    buffers = runner._bindings[0]._binding._crossing._buffers
    assert_equal(drive(runner), drive(make_runner(embedded(1), 2)))
    assert len({value.data_ptr() for value in buffers.values()}) == len(buffers) == 4


def test_inspect_says_how_many(embedded: Export, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(embedded(2))]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stages", "2"] in lines
    assert {line[0] for line in lines if line} >= {"model-1-of-2.onnx", "model-2-of-2.onnx"}
