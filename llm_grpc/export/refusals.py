"""Which architectures are refused, and why: by name, by configuration, and by the graph that came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from transformers import AutoModelForCausalLM, PretrainedConfig

from llm_grpc.errors import ExportError
from llm_grpc.export.attention import AttentionShape
from llm_grpc.export.hooked import implementation_for
from llm_grpc.export.recipe import Lowering

_ALIBI = "it adds a bias by distance to the scores (ALiBi), which the attention node does not"

BY_NAME = {
    "bloom": _ALIBI,
    "mpt": _ALIBI,
}
"""Architectures whose reason is better told than found."""

_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope", "su"})
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


def refuse_by_configuration(config: PretrainedConfig) -> None:
    """Raise ExportError, one line, where the configuration alone says that the export cannot be right."""
    reason = BY_NAME.get(config.model_type) or next(
        (text for check in _CHECKS if (text := check(config))), None
    )
    if reason:
        raise ExportError(f"{config.model_type} cannot be exported: {reason}")


def _not_a_decoder(config: PretrainedConfig) -> str | None:
    if config.is_encoder_decoder:
        return "it is an encoder and a decoder; only decoders are exported"
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return "transformers has no causal language model for it"
    if config.get_text_config() is not config:
        return "its configuration has parts for more than text; only decoders of text are exported"
    return None


def _bypasses_the_hook(config: PretrainedConfig) -> str | None:
    if implementation_for(config) is None:
        return "its code in transformers attends by itself, through neither AttentionInterface nor torch"
    return None


def _biased_by_distance(config: PretrainedConfig) -> str | None:
    return _ALIBI if getattr(config, "alibi", False) else None


def _rope_changes_with_length(config: PretrainedConfig) -> str | None:
    scaling: dict[str, Any] = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in _LENGTH_DEPENDENT_ROPE:
        return f"rope_scaling {kind} turns every position by the length of the whole sequence"
    return None


def _layers_of_other_kinds(config: PretrainedConfig) -> str | None:
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if others:
        return f"it has layers of the kind {others[0]}"
    if getattr(config, "attention_chunk_size", None):
        return "its attention sees chunks, not windows"
    return None


def _scales_inside_its_attention(config: PretrainedConfig) -> str | None:
    if getattr(config, "scale_attn_weights", True) is False:
        return "scale_attn_weights is false, and the scale is inside its own attention"
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return "scale_attn_by_inverse_layer_idx is true, and the scale is inside its own attention"
    return None


_CHECKS: tuple[Callable[[PretrainedConfig], str | None], ...] = (
    _not_a_decoder,
    _biased_by_distance,
    _bypasses_the_hook,
    _rope_changes_with_length,
    _layers_of_other_kinds,
    _scales_inside_its_attention,
)


def refuse_by_layers(config: PretrainedConfig, layers: list[tuple[int, AttentionShape]]) -> None:
    """Raise ExportError unless ``layers``, as they attended, in order, are all that ``config`` speaks of."""
    reason, num_layers = None, config.num_hidden_layers
    shapes = [shape for _, shape in layers]
    if [layer for layer, _ in layers] != list(range(num_layers)):
        reason = f"{len(layers)} of its {num_layers} layers attend in a way that the export can take over"
    elif len({(shape.num_kv_heads, shape.head_dim) for shape in shapes}) != 1:
        reason = "its layers have caches of different shapes"
    elif _hides_a_window(config, shapes):
        reason = "its code in transformers hides a sliding window in a mask, where the export cannot see it"
    if reason:
        raise ExportError(f"{config.model_type} cannot be exported: {reason}")


def _hides_a_window(config: PretrainedConfig, shapes: list[AttentionShape]) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return any(k == "sliding_attention" and s.window < 0 for k, s in zip(kinds, shapes, strict=True))
    window = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return bool(window) and all(shape.window < 0 for shape in shapes)


_MIXES_POSITIONS = frozenset({"Conv", "CumSum", "Loop", "Scan", "Attention", "MultiHeadAttention"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})


_ATTENTION = {"slots": ("GroupQueryAttention", 2), "paged": ("PagedAttention", 1)}
"""The node of a lowering, and how many of them a layer has."""


def refuse_by_graph(
    graph: onnx.GraphProto, architecture: str, num_layers: int, lowering: Lowering = "slots"
) -> None:
    """Raise ExportError unless the lowering's attention nodes are all that lets one token see another.

    A product of two values that both depend on the tokens, or a recurrence, is attention by other means.
    """
    attention, per_layer = _ATTENTION[lowering]
    found = sum(node.op_type == attention for node in graph.node)
    if found != per_layer * num_layers:
        raise ExportError(
            f"{architecture} bypasses the attention hook: {found} attention nodes for {num_layers} layers"
        )
    for node in _mixing(graph):
        raise ExportError(
            f"{architecture} bypasses the attention hook: {node.op_type} {node.name} mixes tokens"
        )


def _mixing(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    tokens = {"input_ids"}
    for node in graph.node:
        dependent = [name for name in node.input if name in tokens]
        if dependent and node.op_type != "Shape":
            tokens.update(node.output)
        if node.op_type in _MIXES_POSITIONS or (node.op_type in _PRODUCTS and len(dependent) > 1):
            yield node
