"""Decoder families at a small size with random weights: what the export is held to, one row each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One checkpoint to export.

    ``odd`` says what is unusual about it; ``config`` overrides ``random_model.SHAPE``, where None takes a key
    away. A ``quick`` one runs in `make check`.
    """

    name: str
    odd: str
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""
    quick: bool = False

    @property
    def model_type(self) -> str:
        """The architecture's name in transformers."""
        return self.architecture or self.name


ODD_HEADS: dict[str, Any] = {
    "hidden_size": 72,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
}
"""Three query heads on one key-value head of 24: nothing is a power of two."""

# Names that GPT-2's configuration and its kin map to their own; they have no grouped heads.
UNGROUPED: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
WINDOW = 8
LAYERS_OF_TWO_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40}

LATENT: dict[str, Any] = {
    **UNGROUPED,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
}

FAMILIES = (
    Family("llama", "three heads on one, head size 24", {**ODD_HEADS, "intermediate_size": 90}, quick=True),
    Family(
        "llama-3",
        "rope_scaling llama3, biased attention and MLP",
        {"rope_scaling": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True},
        architecture="llama",
    ),
    Family("llama-yarn", "rope_scaling yarn", {"rope_scaling": YARN_ROPE}, architecture="llama"),
    Family("mistral", f"every layer sees {WINDOW} tokens", {"sliding_window": WINDOW, "head_dim": 24}),
    Family("mixtral", "5 experts, 2 a token; a window", {"num_local_experts": 5, "sliding_window": WINDOW}),
    Family("qwen2", "biased projections, head size 18", {"hidden_size": 72, "head_dim": None}),
    Family(
        "qwen2-window",
        "the last layer sees a window",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        architecture="qwen2",
    ),
    Family("qwen3", "normalised queries and keys, heads wider than hidden", {"head_dim": 40}),
    Family(
        "qwen2_moe",
        "5 experts and a shared one; a dense layer",
        {**EXPERTS, "shared_expert_intermediate_size": 56, "mlp_only_layers": [1], "head_dim": None},
    ),
    Family("qwen3_moe", "5 experts, normalised weights", {**EXPERTS, "norm_topk_prob": True}),
    Family("olmoe", "5 experts; queries and keys normalised whole", {**EXPERTS, "head_dim": None}),
    Family("gemma", "norms of 1 + weight, scaled embeddings, one key-value head", ODD_HEADS),
    Family(
        "gemma2",
        "caps on scores and logits, windows in turn, a scale of its own",
        {
            "head_dim": 24,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        quick=True,
    ),
    Family(
        "gemma3_text",
        "two rope bases, windows in turn, normalised queries and keys",
        {
            "head_dim": 24,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "layer_types": LAYERS_OF_TWO_KINDS,
        },
    ),
    Family(
        "phi",
        "attention and MLP side by side, half of each head rotates, normalised queries and keys",
        {"partial_rotary_factor": 0.5, "qk_layernorm": True, "head_dim": None},
    ),
    Family(
        "phi3",
        "one matrix for QKV and one for gate and up, a window",
        {"sliding_window": WINDOW, "partial_rotary_factor": 0.5, "head_dim": None},
    ),
    Family("smollm3", "the middle layer has no rotation", {"no_rope_layers": [1, 0, 1], "head_dim": None}),
    Family(
        "gpt2",
        "learned positions, no grouped heads, head size 18",
        {**UNGROUPED, "hidden_size": 72},
        quick=True,
    ),
    Family("gpt_neox", "side by side, a quarter of each head rotates", {**UNGROUPED, "hidden_size": 96}),
    Family("gpt_bigcode", "one key-value head, learned positions", UNGROUPED),
    Family("olmo2", "norms after the blocks", {"hidden_size": 72, "head_dim": None}),
    Family(
        "olmo3",
        "norms after the blocks, windows",
        {"sliding_window": WINDOW, "layer_types": LAYERS_OF_TWO_KINDS, "head_dim": None},
    ),
    Family(
        "granite",
        "multipliers on embeddings, scores, residuals and logits",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.7,
            "logits_scaling": 3.0,
            "head_dim": None,
        },
    ),
    Family(
        "cohere",
        "rotation of neighbours, normalised queries and keys, scaled logits",
        {"use_qk_norm": True, "logit_scale": 0.3, "head_dim": None},
    ),
    Family(
        "cohere2",
        "windows with rotation, whole layers without",
        {"sliding_window": WINDOW, "layer_types": LAYERS_OF_TWO_KINDS, "logit_scale": 0.3},
    ),
    Family("starcoder2", "biases everywhere, a window", {"sliding_window": WINDOW, "head_dim": None}),
    Family(
        "stablelm",
        "a quarter of each head rotates, biased QKV",
        {"use_qkv_bias": True, "hidden_size": 96, "head_dim": None},
    ),
    Family(
        "glm4",
        "rotation of neighbours on half of each head, norms on both sides",
        {"partial_rotary_factor": 0.5, "head_dim": 24},
    ),
    Family(
        "exaone4",
        "windows rotate, whole layers do not",
        {"sliding_window": WINDOW, "layer_types": LAYERS_OF_TWO_KINDS},
    ),
    Family(
        "gpt_oss",
        "attention sinks, 5 experts with biases, windows",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": LAYERS_OF_TWO_KINDS,
            "rope_scaling": YARN_ROPE,
        },
    ),
    Family(
        "opt",
        "learned positions with an offset, embeddings narrower than hidden",
        {**UNGROUPED, "ffn_dim": 90, "word_embed_proj_dim": 40},
    ),
    Family(
        "opt-125m",
        "norms before, as published",
        {**UNGROUPED, "ffn_dim": 96, "word_embed_proj_dim": 64},
        architecture="opt",
    ),
    Family(
        "falcon",
        "one key-value head, one norm for both blocks",
        {"num_key_value_heads": None, "head_dim": None, "multi_query": True, "parallel_attn": True},
    ),
    Family(
        "falcon-2",
        "grouped heads, a norm for each block",
        {"num_key_value_heads": None, "num_kv_heads": 2, "head_dim": None, "new_decoder_architecture": True},
        architecture="falcon",
    ),
    Family("deepseek_v3", "keys wider than values, from a latent; 8 experts in groups", LATENT),
    Family("nemotron", "norms of 1 + weight, squared ReLU, half of each head rotates", {"head_dim": None}),
    Family(
        "gpt_neo",
        "no scale on the scores",
        {**UNGROUPED, "num_layers": 3, "attention_types": [[["global"], 3]]},
    ),
    Family("gptj", "rotation of neighbours", {**UNGROUPED, "rotary_dim": 8}),
    Family("bloom", "scores biased by distance", UNGROUPED),
    Family(
        "falcon-rw",
        "scores biased by distance",
        {"num_key_value_heads": None, "head_dim": None, "alibi": True},
        architecture="falcon",
    ),
    Family(
        "phimoe",
        "5 experts chosen one after the other",
        {"num_local_experts": 5, "sliding_window": None, "head_dim": None},
    ),
)
