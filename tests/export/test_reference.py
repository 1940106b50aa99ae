"""The reference computes in fp32 what a model loaded in fp32 computes, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm_grpc.export.command import export
from llm_grpc.export.load import load_model
from llm_grpc.export.reference import in_fp32, reference_logits
from llm_grpc.export.source import find_source
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.manifest import load_manifest
from tests.export.families import FAMILIES, Family
from tests.export.random_model import Eager, save_random_model, store_as

IDS = list(range(3, 33))
QUICK = {"llama", "gemma3_text", "gpt2", "mixtral", "qwen3_moe", "cohere", "gpt_oss", "falcon", "deepseek_v3"}


def load(directory: Path) -> PreTrainedModel:
    return load_model(find_source(str(directory)))


@pytest.fixture
def stored(tmp_path: Path) -> PreTrainedModel:
    return load(store_as(save_random_model(tmp_path)))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=[] if f.name in QUICK else [pytest.mark.slow]) for f in FAMILIES],
)
def test_it_is_the_model_loaded_in_fp32(family: Family, tmp_path: Path) -> None:
    store_as(save_random_model(tmp_path, family.model_type, **family.config))
    wide = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        wanted = wide(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    found = reference_logits(load(tmp_path), IDS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    store_as(save_random_model(tmp_path), dtype)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = wide(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(reference_logits(load(tmp_path), IDS), wanted, rtol=0, atol=1e-5)


def test_an_fp32_model_is_left_alone(checkpoint: Path) -> None:
    model = load(checkpoint)
    before = [type(module) for module in model.modules()]
    with in_fp32(model):
        assert [type(module) for module in model.modules()] == before
    np.testing.assert_array_equal(reference_logits(model, IDS), Eager(checkpoint).logits(IDS))


def test_afterwards_the_model_is_as_it_was(stored: PreTrainedModel) -> None:
    kinds = [type(module) for module in stored.modules()]
    tensors = stored.state_dict(keep_vars=True)
    with in_fp32(stored):
        assert stored.dtype == stored.lm_head.weight.dtype == torch.float32
        assert {tensor.dtype for tensor in stored.state_dict().values()} == {torch.bfloat16}
    assert [type(module) for module in stored.modules()] == kinds
    assert stored.dtype == stored.lm_head.weight.dtype == torch.bfloat16
    after = stored.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in tensors.items())


def test_a_run_that_fails_leaves_the_model_as_it_was(stored: PreTrainedModel) -> None:
    kinds = [type(module) for module in stored.modules()]
    with pytest.raises(IndexError):
        reference_logits(stored, [10**6])
    assert [type(module) for module in stored.modules()] == kinds


def test_parts_of_a_weight_and_its_shape_do_not_widen_the_whole(stored: PreTrainedModel) -> None:
    weight = stored.model.embed_tokens.weight.detach()
    with in_fp32(stored), torch.no_grad():
        seen = stored.model.embed_tokens.weight
        assert (seen.shape, seen.dim(), len(seen), seen.numel()) == (weight.shape, 2, 257, 257 * 64)
        for part in (seen[3], torch.cat([seen[:2], seen]), seen + 1, seen.float(), seen.T):
            assert type(part) is torch.Tensor
            assert part.dtype == torch.float32
        assert torch.equal(seen[3], weight[3].float())


def test_a_bf16_checkpoint_is_exported_and_verified(tmp_path: Path) -> None:
    store_as(save_random_model(tmp_path / "source"))
    export(str(tmp_path / "source"), tmp_path / "model", "random", VerifyOptions(num_tokens=4))
    assert load_manifest(tmp_path / "model").verification
