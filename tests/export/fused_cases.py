"""Norms and rotations, and a model of one of them, traced as the export traces a model."""

from __future__ import annotations

import io
from typing import Any

import onnx
import torch
from transformers.models.cohere import modeling_cohere
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.glm import modeling_glm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from llm_grpc.export.fused_norm import fused_norms
from llm_grpc.export.fused_rotary import fused_rotary

cohere = modeling_cohere.apply_rotary_pos_emb
deepseek = modeling_deepseek_v3.apply_rotary_pos_emb_interleave
glm = modeling_glm.apply_rotary_pos_emb
gpt_neox = modeling_gpt_neox.apply_rotary_pos_emb
gpt_oss = modeling_gpt_oss.apply_rotary_pos_emb
gptj = modeling_gptj.apply_rotary_pos_emb
llama = modeling_llama.apply_rotary_pos_emb

HEADS, WIDTH = 3, 8

ROTATIONS = {
    "llama": ("halves", False, False),
    "gpt_neox": ("halves", False, False),
    "gpt_oss": ("all", False, False),
    "cohere": ("neighbours", True, False),
    "glm": ("halves", True, False),
    "deepseek": ("halves", False, True),
}
"""How each of these functions turns: where its angles stand, whether neighbours pair, whether it sorts."""
LAYOUTS = {"cohere": "neighbours", "gpt_oss": "all"}
"""Where their models put the angles, if not in two equal halves."""
PARTIAL = frozenset({"gpt_neox", "glm"})
"""Those that turn the first columns and pass the others on."""


def mirror(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
    """No rotation, though it has the name of one."""
    return q * cos[:, None] - q.flip(-1) * sin[:, None], k


def angles(layout: str, tokens: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[1, tokens, columns]`` for a turn of ``width`` columns."""
    frequencies = 0.7 ** torch.arange(width // 2)
    angle = (torch.arange(tokens)[:, None] * frequencies)[None]
    if layout == "halves":
        angle = torch.cat((angle, angle), -1)
    elif layout == "neighbours":
        angle = torch.stack((angle, angle), -1).flatten(-2)
    return angle.cos(), angle.sin()


def inputs(name: str, tokens: int) -> tuple[torch.Tensor, ...]:
    """Query, key, cosines and sines for one of the functions; query and key are transposed, as in a model."""
    q, k = (torch.randn(1, tokens, heads, WIDTH).transpose(1, 2) for heads in (HEADS, 1))
    return q, k, *angles(LAYOUTS.get(name, "halves"), tokens, WIDTH // 2 if name in PARTIAL else WIDTH)


class Rotates(torch.nn.Module):
    """A model that rotates, by the function of this file that ``name`` is the name of."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: torch.Tensor) -> Any:
        """Query and key, turned."""
        return globals()[self.name](*args)


class RotatesOne(torch.nn.Module):
    """A model that calls GPT-J's function, which takes the sines first and tokens before heads."""

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """``x``, turned."""
        turned: torch.Tensor = gptj(x, sin, cos)
        return turned


def traced(
    model: torch.nn.Module, args: tuple[torch.Tensor, ...], tokens_at: tuple[int, ...]
) -> onnx.ModelProto:
    """The graph of ``model`` with inputs ``in0``...; the number of tokens may change."""
    names = [f"in{i}" for i in range(len(args))]
    axes = {name: {at: "tokens"} for name, at in zip(names, tokens_at, strict=True)}
    file = io.BytesIO()
    with torch.no_grad(), fused_norms(model), fused_rotary(model):
        torch.onnx.export(
            model.eval(), args, file, input_names=names, dynamic_axes=axes, opset_version=18, dynamo=False
        )
    return onnx.load_from_string(file.getvalue())
