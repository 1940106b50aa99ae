"""An int8 cache keeps every channel to half a step of its scale, and a model to little of its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk
from llm_grpc.errors import ExportError, ManifestError
from llm_grpc.export.calibrate import Calibration, calibrate
from llm_grpc.export.command import export
from llm_grpc.export.job import GRAPH_PASSES, GraphPass
from llm_grpc.export.load import load_model
from llm_grpc.export.passes.int8_cache import HEAD_ROOM, int8_cache
from llm_grpc.export.passes.tidy import without_shapes
from llm_grpc.export.source import find_source
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.export.verify_drive import run_all_rows
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from tests.export.random_model import save_random_model
from tests.export.threefold import Logits, ids

Floats = NDArray[np.floating]

TOLERANCE = 0.04
"""Largest difference of a logit, relative to the largest logit; the most that was measured is 0.017."""

Work = Callable[[SlotRunner], Logits]

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "padded, with a window": ("mistral", {"hidden_size": 72, "head_dim": 18, "sliding_window": 16}),
    "with sinks": ("gpt_oss", {"num_local_experts": 4, "sliding_window": 16}),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One checkpoint, exported with each cache."""

    calibration: Calibration
    fp32: Path
    int8: Path
    plain: Path
    """The fp32 graph before its attention is packed, which is what the pass gets."""


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("int8_cache")
    architecture, overrides = MODELS[request.param]
    checkpoint = str(save_random_model(directory / "checkpoint", architecture, **overrides))
    calibration = calibrate(load_model(find_source(checkpoint)), [ids(seed, 120) for seed in range(50, 58)])
    options = VerifyOptions(num_tokens=1, allow_inexact=True)
    plain = directory / "plain.onnx"
    keeping: tuple[GraphPass, ...] = (*GRAPH_PASSES, partial(ir.save, path=plain))
    export(checkpoint, directory / "fp32", "random", options, passes=keeping)
    passes: tuple[GraphPass, ...] = (*GRAPH_PASSES, partial(int8_cache, calibration=calibration))
    export(checkpoint, directory / "int8", "random", options, passes=passes)
    return Pair(calibration, directory / "fp32", directory / "int8", plain)


def runner(model_dir: Path) -> SlotRunner:
    return SlotRunner(model_dir, load_manifest(model_dir), num_slots=4, context_tokens=128, threads=1)


def whole(run: SlotRunner) -> Logits:
    return run_all_rows(run, [], PrefillChunk(0, 0, ids(1, 60)))


def in_chunks(run: SlotRunner, size: int) -> Logits:
    tokens = ids(1, 60)
    chunks = [PrefillChunk(2, at, tokens[at : at + size]) for at in range(0, 60, size)]
    return np.concatenate([run_all_rows(run, [], chunk) for chunk in chunks])


def ragged(run: SlotRunner) -> Logits:
    """Slots 0 and 3 decode at lengths 30 and 5, slot 2 is idle, slot 1 is prefilled beside them."""
    first, second, third = ids(3, 40), ids(4, 15), ids(5, 30)
    run_all_rows(run, [], PrefillChunk(0, 0, first[:30]))
    run_all_rows(run, [], PrefillChunk(3, 0, second[:5]))
    steps = []
    for step in range(10):
        rows = [DecodeRow(0, first[30 + step], 30 + step), DecodeRow(3, second[5 + step], 5 + step)]
        steps.append(run_all_rows(run, rows, PrefillChunk(1, step * 3, third[step * 3 : step * 3 + 3])))
    return np.concatenate(steps)


def error(found: Logits, wanted: Logits) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def scales(model_dir: Path, kind: str) -> Floats:
    """Of the first layer, ``[kv_heads * head_dim]``."""
    factors = ir.load(model_dir / "model.onnx").graph.initializers[f"cache_scale.0.{kind}"].const_value
    assert factors is not None
    found: Floats = 1 / factors.numpy()
    return found


def test_scales_have_head_room_over_what_was_seen(pair: Pair) -> None:
    values = scales(pair.int8, "value").reshape(pair.calibration.value_absmax[0].shape)
    seen = pair.calibration.value_absmax[0]
    np.testing.assert_allclose(values[seen > 0], HEAD_ROOM * seen[seen > 0] / 127, rtol=1e-5)
    assert (values > 0).all()
    keys = scales(pair.int8, "key").reshape(seen.shape)
    assert (keys * 127 >= 1.0999 * pair.calibration.key_absmax[0]).all()


def test_logits_are_those_of_the_fp32_cache(pair: Pair) -> None:
    works: list[Work] = [whole, *(partial(in_chunks, size=size) for size in (1, 7, 59)), ragged]
    for work in works:
        found = error(work(runner(pair.int8)), work(runner(pair.fp32)))
        assert 0 < found <= TOLERANCE


def test_how_a_prompt_is_cut_changes_nothing(pair: Pair) -> None:
    wanted = whole(runner(pair.int8))
    for size in (1, 7, 59):
        assert error(in_chunks(runner(pair.int8), size), wanted) < 1e-5


def test_a_slot_is_taken_again_and_filled(pair: Pair) -> None:
    used = runner(pair.int8)
    run_all_rows(used, [], PrefillChunk(0, 0, ids(6, 100)))
    again, fresh, exact = (filled(run) for run in (used, runner(pair.int8), runner(pair.fp32)))
    np.testing.assert_array_equal(again, fresh)
    assert error(again, exact) <= TOLERANCE


def filled(run: SlotRunner) -> Logits:
    tokens = ids(8, 128)
    logits = run_all_rows(run, [], PrefillChunk(0, 0, tokens[:127]))
    return np.concatenate([logits, run_all_rows(run, [DecodeRow(0, tokens[127], 127)], None)])


def test_the_cache_in_place_is_the_fp32_one_in_a_quarter_of_the_bytes(pair: Pair) -> None:
    ours, exact = runner(pair.int8), runner(pair.fp32)
    for run in (ours, exact):
        whole(run)
    steps = {"key": scales(pair.int8, "key"), "value": scales(pair.int8, "value")}
    caches = zip(ours._pool.views(0, 1), exact._pool.views(0, 1), strict=True)
    for (layer, kind, codes), (_, _, wanted) in caches:
        assert codes.dtype == np.int8
        assert codes.nbytes * 4 == wanted.nbytes
        assert not codes[:, :, 61:].any()
        if layer == 0:  # those below see the errors of the layers before them
            step = steps[kind].reshape(codes.shape[1], 1, -1)
            beyond = np.maximum(np.abs(wanted) - 127 * step, 0)
            assert (np.abs(codes * step - wanted) <= 0.501 * step + beyond).all()
    per_token = [load_manifest(path).kv_cache.token_bytes for path in (pair.int8, pair.fp32)]
    assert per_token[0] * 4 == per_token[1]


def test_a_value_beyond_the_calibrated_range_saturates(pair: Pair, tmp_path: Path) -> None:
    """The calibration is cut to a tenth: codes reach the ends of the range and keep their signs."""
    model = ir.load(pair.plain)
    without_shapes(model)
    small = {
        name: getattr(pair.calibration, name) / np.float32(10) for name in ("key_absmax", "value_absmax")
    }
    int8_cache(model, dataclasses.replace(pair.calibration, **small))
    ir.save(model, tmp_path / "model.onnx")
    kv_cache = load_manifest(pair.int8).kv_cache
    manifest = load_manifest(pair.fp32).model_copy(update={"kv_cache": kv_cache})
    ours, exact = SlotRunner(tmp_path, manifest, 1, 128, threads=1), runner(pair.fp32)
    for run in (ours, exact):
        run_all_rows(run, [], PrefillChunk(0, 0, ids(1, 60)))
        run_all_rows(run, [DecodeRow(0, 5, 60)], None)
    for (layer, _, codes), (_, _, wanted) in zip(
        ours._pool.views(0, 1), exact._pool.views(0, 1), strict=True
    ):
        if layer == 0:
            assert {-128, 127} <= set(codes.ravel().tolist())
            assert (np.sign(codes) * np.sign(wanted) >= 0).all()


def test_a_manifest_with_the_other_type_is_refused(pair: Pair) -> None:
    for directory, wrong in ((pair.int8, "float32"), (pair.fp32, "int8")):
        manifest = load_manifest(directory)
        kv_cache = manifest.kv_cache.model_copy(update={"dtype": wrong})
        with pytest.raises(ManifestError, match=r"past\.0\.key\.decode"):
            SlotRunner(directory, manifest.model_copy(update={"kv_cache": kv_cache}), 1, 16, threads=1)


def test_a_calibration_of_another_model_is_refused(pair: Pair) -> None:
    model = ir.load(pair.plain)
    keys = pair.calibration.key_absmax
    for wrong, says in (
        (keys[:1], "key of layer 1"),
        (keys + np.float32(np.inf), "no finite largest key of layer 0"),
        (keys[..., :8], "and the cache's"),
    ):
        with pytest.raises(ExportError, match=says):
            int8_cache(model, dataclasses.replace(pair.calibration, key_absmax=wrong))
