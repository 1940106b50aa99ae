"""What cannot be exported is refused in one line before its weights are read, or when its graph is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from transformers import AutoConfig, AutoModelForCausalLM

from llm_grpc.errors import ExportError
from llm_grpc.export.command import export
from llm_grpc.export.onnx_config import kv_cache_of
from llm_grpc.export.probe import attention_of
from llm_grpc.export.refusals import BY_NAME, refuse_by_graph
from tests.export.random_model import save_random_model, small_config

# Two of the architectures use what torch deprecates as they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

WINDOWED = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
    "num_experts": 4,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("architecture", "overrides", "reason"),
    [
        *((name, {}, "ALiBi") for name in BY_NAME),
        ("falcon", {"alibi": True, "head_dim": None}, "ALiBi"),
        ("gptj", {}, "attends by itself"),
        ("codegen", {}, "attends by itself"),
        ("t5", {}, "encoder and a decoder"),
        ("vit", {}, "no causal language model"),
        ("mamba", {}, "0 of its 3 layers attend"),
        ("gemma3", {}, "more than text"),
        ("lfm2", {"layer_types": ["full_attention", "conv", "conv"]}, "layers of the kind conv"),
        ("phi3", {"rope_scaling": LONG}, "longrope turns every position by the length"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic turns every position"),
        ("qwen2_moe", WINDOWED, "hides a sliding window"),
        ("phimoe", {"num_local_experts": 4, "sliding_window": None}, "branches on computed values"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
    ],
)
def test_an_architecture_is_refused_by_name_with_the_reason(
    architecture: str, overrides: dict[str, Any], reason: str
) -> None:
    config = small_config(architecture, **overrides)
    with pytest.raises(ExportError, match=f"^{architecture} cannot be exported: .*{reason}") as refused:
        attention_of(config)
    assert "\n" not in str(refused.value)


def test_the_cache_is_what_the_layers_attend_with_not_what_the_configuration_counts() -> None:
    """A size that is no multiple of 8 is filled up, and one key-value head has many names."""
    assert kv_cache_of(small_config("llama", hidden_size=72, head_dim=18)).head_dim == 24
    assert kv_cache_of(AutoConfig.for_model("gpt_bigcode", n_embd=64, n_head=4, n_layer=3)).num_heads == 1


def test_a_large_model_is_judged_without_its_weights() -> None:
    """70 billion parameters: reading or making one layer's weights would take gigabytes and minutes."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
    )
    kv = kv_cache_of(config)
    assert (kv.num_layers, kv.num_heads, kv.head_dim) == (80, 8, 128)


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes),
        "step",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
        [],
        [helper.make_tensor("weight", TensorProto.FLOAT, [1, 1], [1.0])],
    )


ATTENTION = helper.make_node("GroupQueryAttention", ["hidden"], ["out"])
EMBED = helper.make_node("Gather", ["weight", "input_ids"], ["hidden"])


def test_a_graph_of_two_attention_nodes_a_layer_passes() -> None:
    projection = helper.make_node("MatMul", ["hidden", "weight"], ["query"])
    refuse_by_graph(graph(EMBED, projection, ATTENTION, ATTENTION), "llama", 1)


def test_a_graph_without_its_attention_nodes_is_refused() -> None:
    with pytest.raises(
        ExportError, match="other bypasses the attention hook: 2 attention nodes for 2 layers"
    ):
        refuse_by_graph(graph(EMBED, ATTENTION, ATTENTION), "other", 2)


@pytest.mark.parametrize(
    "mixing",
    [
        helper.make_node("MatMul", ["hidden", "hidden"], ["scores"], name="scores"),
        helper.make_node("CumSum", ["hidden", "axis"], ["state"], name="state"),
    ],
    ids=["scores", "recurrence"],
)
def test_a_graph_that_attends_by_other_means_is_refused(mixing: onnx.NodeProto) -> None:
    with pytest.raises(
        ExportError, match=f"bypasses the attention hook: {mixing.op_type} {mixing.name} mixes"
    ):
        refuse_by_graph(graph(EMBED, mixing, ATTENTION, ATTENTION), "other", 1)


def test_weights_that_are_pickled_are_refused(tmp_path: Path) -> None:
    checkpoint = save_random_model(tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    torch.save(model.state_dict(), checkpoint / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"cannot load .*safetensors") as refused:
        export(str(checkpoint), tmp_path / "model")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "model").exists()


def test_code_that_a_checkpoint_brings_is_not_run(tmp_path: Path) -> None:
    checkpoint = save_random_model(tmp_path / "checkpoint")
    ran = tmp_path / "ran"
    (checkpoint / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((checkpoint / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="cannot load"):
        export(str(checkpoint), tmp_path / "model")
    assert not ran.exists()
