"""A model is loaded as it is stored, and mapped: memory does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm_grpc.errors import ExportError
from llm_grpc.export.load import load_model
from llm_grpc.export.mapped import without_weights
from llm_grpc.export.source import find_source
from tests.export.random_model import save_random_model, small_config, store_as

WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return store_as(save_random_model(tmp_path / "source"))


def load(directory: Path) -> torch.nn.Module:
    return load_model(find_source(str(directory)))


def change(directory: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of the checkpoint, or drop those that are None."""
    changed = {**load_file(directory / WEIGHTS), **tensors}
    kept = {name: tensor.clone() for name, tensor in changed.items() if tensor is not None}
    save_file(kept, directory / WEIGHTS, {"format": "pt"})


def test_weights_are_what_the_files_hold(source: Path) -> None:
    found = load(source).state_dict()
    for name, tensor in load_file(source / WEIGHTS).items():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], tensor)


def test_weights_in_several_files(source: Path) -> None:
    whole = load(source).state_dict()
    store_as(source, max_shard_size="100KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    found = load(source).state_dict()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_tied_head_is_one_tensor(source: Path) -> None:
    model = load(source)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_each_weight_keeps_its_own_dtype(source: Path) -> None:
    exact = torch.full((64,), 1.0 + 2.0**-20)
    change(source, **{NORM: exact})
    found = load(source).state_dict()
    assert torch.equal(found[NORM], exact)
    assert found["lm_head.weight"].dtype == torch.bfloat16


def test_what_no_file_holds_is_fp32(tmp_path: Path) -> None:
    directory = store_as(save_random_model(tmp_path, "gemma3_text", hidden_size=72))
    wanted = dict(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).named_buffers())
    found = dict(load(directory).named_buffers())
    assert found.keys() == wanted.keys()
    assert "model.embed_tokens.embed_scale" in found
    for name, buffer in found.items():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, wanted[name])


def test_a_checkpoint_of_the_body_alone_has_its_names_completed(source: Path) -> None:
    body = {name.removeprefix("model."): tensor for name, tensor in load_file(source / WEIGHTS).items()}
    save_file(body, source / WEIGHTS, {"format": "pt"})
    assert torch.equal(load(source).state_dict()[NORM], body["norm.weight"])


def test_keys_that_the_model_does_not_know_are_passed_over(source: Path) -> None:
    change(source, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    assert load(source).model.rotary_emb.inv_freq[0] == 1


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (None, "it lacks 1 weights, model.norm.weight the first"),
        (torch.zeros(63), r"model.norm.weight has shape \[63\], and its configuration means \[64\]"),
    ],
)
def test_what_does_not_fit_is_said(source: Path, tensor: torch.Tensor | None, says: str) -> None:
    change(source, **{NORM: tensor})
    with pytest.raises(ExportError, match=says):
        load(source)


MEASURE = """
import sys, threading, time
from pathlib import Path
from llm_grpc.export.load import load_model
from llm_grpc.export.reference import reference_logits
from llm_grpc.export.source import find_source

def anonymous():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.001)

before = anonymous()
model = load_model(find_source(sys.argv[1]))
sum(int(tensor.view(-1)[::64].isnan().sum()) for tensor in model.state_dict().values())
print(anonymous() - before)
seen = [before]
threading.Thread(target=watch, daemon=True).start()
reference_logits(model, [1, 2, 3])
print(max(seen) - before)
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Five layers and an embedding, 200 MB in bf16; the largest matrix is 32 MB of it."""
    config = small_config(
        "llama", hidden_size=1024, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=8,
        head_dim=128, intermediate_size=4096, vocab_size=16000,
    )  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in without_weights(config).state_dict().items()}
    shapes.pop("lm_head.weight")
    zeros = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(zeros, tmp_path / WEIGHTS, {"format": "pt"})
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says which memory is mapped")
def test_memory_does_not_grow_with_the_model(large: Path) -> None:
    size = (large / WEIGHTS).stat().st_size
    command = [sys.executable, "-c", MEASURE, str(large)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110)
    loaded, peak = map(int, done.stdout.split())
    assert loaded < size / 10
    # In fp32 the model is twice the file, and the largest matrix a third of it; torch has buffers of its own.
    assert peak < size
    (large / WEIGHTS).unlink()
