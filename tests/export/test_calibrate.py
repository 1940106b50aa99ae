"""A calibration has what the model's layers saw, at the sampled positions and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from llm_grpc.errors import ExportError
from llm_grpc.export.attention import current_step
from llm_grpc.export.attention_torch import MaximaStep
from llm_grpc.export.calibrate import Calibration, calibrate, calibration_windows, sampled_positions
from llm_grpc.export.hooked import TorchAttention, hooked
from llm_grpc.export.load import load_model
from llm_grpc.export.reference import in_fp32, reference_logits
from llm_grpc.export.source import find_source
from tests.export.families import FAMILIES
from tests.export.random_model import save_random_model, store_as

WINDOWS = [list(range(start, start + 20)) for start in (0, 50, 90)]
CONFIGS = {family.name: family for family in FAMILIES}


def load(directory: Path, name: str) -> PreTrainedModel:
    family = CONFIGS[name]
    store_as(save_random_model(directory, family.model_type, **family.config))
    return load_model(find_source(str(directory)))


def seen_by_hooks(model: PreTrainedModel) -> dict[str, list[torch.Tensor]]:
    """The inputs of every layer that has a matrix, in eager attention, window by window."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if type(module).__name__ in {"Linear", "Conv1D"}:
            key = f"{name}.weight"
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, key=key: seen.setdefault(key, []).append(args[0].flatten(0, -2))
                )
            )
    for window in WINDOWS:
        reference_logits(model, window)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_rows_are_the_inputs_at_the_positions(name: str, tmp_path: Path) -> None:
    model = load(tmp_path, name)
    seen, found = seen_by_hooks(model), calibrate(model, WINDOWS, 16)
    places = sampled_positions(WINDOWS, 16)
    assert sum(map(len, places)) == 16
    assert found.rows.keys() == seen.keys() <= model.state_dict().keys()
    assert "lm_head.weight" in seen
    for weight, inputs in seen.items():
        wanted = torch.cat([x[torch.from_numpy(at)] for x, at in zip(inputs, places, strict=True)])
        assert found.rows[weight].dtype == np.float32
        np.testing.assert_allclose(found.rows[weight], wanted.numpy(), atol=1e-5)


def test_layers_with_one_input_share_an_array(tmp_path: Path) -> None:
    rows = calibrate(load(tmp_path, "llama"), WINDOWS, 16).rows
    q, k, v, o, gate, up = (
        rows[f"model.layers.1.{part}_proj.weight"]
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up")
    )
    assert np.shares_memory(q, k)
    assert np.shares_memory(q, v)
    assert np.shares_memory(gate, up)
    assert not np.shares_memory(q, gate)
    assert not np.shares_memory(q, o)


def test_experts_have_rows_of_the_tokens_that_chose_them(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen3_moe")
    seen, found = seen_by_hooks(model), calibrate(model, WINDOWS, 12)
    experts = {name: rows for name, rows in found.rows.items() if ".experts." in name}
    assert len(experts) == 3 * 5 * 3
    for name, rows in experts.items():
        inputs = torch.cat(seen.get(name, [torch.empty(0, rows.shape[1])])).numpy()
        assert bool(len(rows)) == bool(len(inputs))
        for row in rows:
            assert np.abs(inputs - row).max(1).min() < 1e-4
    parts = [f"model.layers.0.mlp.experts.0.{part}_proj.weight" for part in ("gate", "up", "down")]
    assert len({len(experts[part]) for part in parts}) == 1


def test_an_expert_that_no_token_chose_has_no_rows(tmp_path: Path) -> None:
    model = load(tmp_path, "mixtral")
    rows = calibrate(model, [[7, 7]], 4).rows
    without = [value for name, value in rows.items() if ".experts." in name and not len(value)]
    assert without
    assert {value.shape for value in without} == {(0, 64), (0, 96)}


def test_maxima_are_those_of_the_cache(tmp_path: Path) -> None:
    model = load(tmp_path, "llama")
    found, keys, values = calibrate(model, WINDOWS), [], []
    for window in WINDOWS:
        with torch.no_grad(), in_fp32(model):
            cache = model(torch.tensor([window]), use_cache=True).past_key_values
        keys.append([layer.keys[0].abs().amax(1).numpy() for layer in cache.layers])
        values.append([layer.values[0].abs().amax(1).numpy() for layer in cache.layers])
    assert found.key_absmax.shape == found.value_absmax.shape == (3, 1, 24)
    np.testing.assert_allclose(found.key_absmax, np.max(keys, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.value_absmax, np.max(values, axis=0), rtol=1e-5)


# Head size 18 padded to 24; a window; caps; sinks; torch's own function taken over.
@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2", "gpt_oss", "falcon-2"])
def test_the_attention_is_eager_attention(name: str, tmp_path: Path) -> None:
    model, ids = load(tmp_path, name), list(range(30))
    token = current_step.set(MaximaStep())
    with torch.no_grad(), hooked(model), in_fp32(model), TorchAttention(model.config):
        found = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    current_step.reset(token)
    wanted = reference_logits(model, ids)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_padded_channels_are_zero(tmp_path: Path) -> None:
    found = calibrate(load(tmp_path, "gpt2"), WINDOWS)
    assert found.key_absmax.shape == (3, 4, 24)
    assert (found.key_absmax[..., :18] > 0).all()
    assert (found.key_absmax[..., 18:] == 0).all()


def test_the_model_is_as_it_was_and_progress_is_told(tmp_path: Path) -> None:
    model, told = load(tmp_path, "falcon"), list[tuple[int, int]]()
    before = reference_logits(model, WINDOWS[0])
    calibrate(model, WINDOWS, 8, on_window=lambda *part: told.append(part))
    assert told == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal(reference_logits(model, WINDOWS[0]), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_seed_gives_one_sample() -> None:
    one, again, other = (np.concatenate(sampled_positions(WINDOWS, 16, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_every_position_is_as_likely() -> None:
    windows = [[0] * 5, [0] * 15]
    counts = np.zeros(20)
    for seed in range(2000):
        first, second = sampled_positions(windows, 4, seed)
        counts[first] += 1
        counts[5 + second] += 1
    assert counts.sum() == 8000
    # 400 are expected, and the standard deviation is 18.
    assert np.abs(counts - 400).max() < 90


def test_fewer_tokens_than_rows_are_all_taken() -> None:
    assert [part.tolist() for part in sampled_positions([[5, 6], [7, 8, 9]], 256)] == [[0, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "has 0 tokens, and the least is 256"),
        (b"x" * 255, "has 255 tokens, and the least is 256"),
    ],
)
def test_a_text_that_cannot_be_used(checkpoint: Path, tmp_path: Path, content: Any, says: str) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(ExportError, match=says):
        calibration_windows(text, checkpoint / "tokenizer.json", 128)


def test_without_windows_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no text to calibrate with"):
        calibrate(load(tmp_path, "llama"), [])


def test_windows_are_spread_over_the_text(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"".join(bytes([number]) * 128 for number in range(65, 65 + 62)))
    windows = calibration_windows(text, checkpoint / "tokenizer.json", 128)
    assert len(windows) == 32
    assert {len(window) for window in windows} == {128}
    assert {len(set(window)) for window in windows} == {1}
    assert windows[-1][0] - windows[0][0] == 61


def test_calibration_is_deterministic(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen3_moe")
    one, again = calibrate(model, WINDOWS, 8), calibrate(model, WINDOWS, 8)
    assert isinstance(one, Calibration)
    for name, rows in one.rows.items():
        np.testing.assert_array_equal(rows, again.rows[name])
