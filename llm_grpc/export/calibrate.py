"""What a model's matrices multiply and its caches hold: the reference, run over windows of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from llm_grpc.errors import ExportError
from llm_grpc.export.attention import current_step
from llm_grpc.export.attention_torch import MaximaStep
from llm_grpc.export.hooked import TorchAttention, hooked
from llm_grpc.export.reference import in_fp32
from llm_grpc.export.rows import Rows
from llm_grpc.export.verify_input import cut_windows, encode_text, read_text

WINDOW_TOKENS, MAX_WINDOWS, NUM_ROWS, MIN_TOKENS = 512, 32, 4096, 256


@dataclass(frozen=True)
class Calibration:
    """What was seen.

    ``rows`` has an array for the weight of every linear layer, under its name in ``model.state_dict()``:
    inputs ``[n, K]`` of that layer at ``n`` positions, the same ones for all. Layers with one input share one
    array. The experts of a mixture see fewer tokens: their rows are drawn from those, and may be none.

    ``key_absmax`` and ``value_absmax`` are ``[layers, kv_heads, head_dim]``: the largest magnitude of each
    channel over all positions, of keys as they are cached, after the rotation. Channels of padding are 0.
    """

    rows: dict[str, NDArray[np.float32]]
    key_absmax: NDArray[np.float32]
    value_absmax: NDArray[np.float32]


def calibration_windows(text: Path, tokenizer: Path, context_tokens: int) -> list[list[int]]:
    """At most ``MAX_WINDOWS`` windows of token ids, at equal distances in the text.

    Args:
        text: the file to read, UTF-8.
        tokenizer: the model's tokenizer.json.
        context_tokens: the longest sequence of the model, the bound of a window.

    Raises:
        ExportError: the text cannot be read, is not UTF-8, or has fewer than ``MIN_TOKENS`` tokens.
    """
    ids = encode_text(tokenizer, text, read_text(text), MIN_TOKENS)
    windows = cut_windows(ids, min(WINDOW_TOKENS, context_tokens))
    chosen = np.linspace(0, len(windows) - 1, min(len(windows), MAX_WINDOWS)).round().astype(int)
    return [windows[index] for index in chosen]


def affordable_rows(model: PreTrainedModel, available_bytes: int) -> int:
    """Positions to sample: ``NUM_ROWS``, or what a quarter of the memory holds, ``MIN_TOKENS`` at least.

    Layers that share an input are counted twice, which leaves room for what rounding needs.
    """
    width = sum(int(weight.shape[-1]) for weight in model.parameters() if weight.dim() == 2)
    return max(MIN_TOKENS, min(NUM_ROWS, available_bytes // 4 // (4 * width)))


def sampled_positions(windows: list[list[int]], num_rows: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """A uniform sample of ``num_rows`` tokens of all windows, or all if there are fewer.

    Returns:
        For each window the places of its tokens, ascending.
    """
    ends = np.cumsum([len(window) for window in windows])
    random = np.random.Generator(np.random.PCG64(seed))
    found = np.sort(random.choice(int(ends[-1]), min(num_rows, int(ends[-1])), replace=False))
    parts = np.split(found, np.searchsorted(found, ends[:-1]))
    return [part - start for part, start in zip(parts, [0, *ends[:-1]], strict=True)]


def calibrate(
    model: PreTrainedModel,
    windows: list[list[int]],
    num_rows: int = NUM_ROWS,
    on_window: Callable[[int, int], None] = lambda *_: None,
    seed: int = 0,
) -> Calibration:
    """Run ``model`` in fp32 over ``windows``, which do not see each other, and collect what it computes with.

    ``model`` is one whose attention ``probe.attention_of`` accepts. ``on_window`` gets the number of windows
    that are done and of all.

    Raises:
        ExportError: there are no windows.
    """
    if not windows:
        raise ExportError("there is no text to calibrate with")
    step, positions = MaximaStep(), sampled_positions(windows, num_rows, seed)
    token = current_step.set(step)
    try:
        with (
            torch.no_grad(),
            hooked(model),
            in_fp32(model),
            Rows(model, sum(map(len, positions)), seed) as rows,
        ):
            for index, (window, places) in enumerate(zip(windows, positions, strict=True)):
                rows.begin(len(window), places)
                _run(model, window)
                on_window(index + 1, len(windows))
            return Calibration(rows.rows(), *step.maxima())
    finally:
        current_step.reset(token)


def _run(model: PreTrainedModel, ids: list[int]) -> None:
    with TorchAttention(model.config):
        model(input_ids=torch.tensor([ids]), use_cache=False)
