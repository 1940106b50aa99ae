"""What is no adapter of a model is refused in one line that says why, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_grpc.adapter_manifest import ADAPTER, ADAPTER_WEIGHTS
from llm_grpc.cli.main import main
from llm_grpc.errors import ExportError, ManifestError
from llm_grpc.export.adapter import export_adapter
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe
from llm_grpc.manifest import file_entry, load_manifest
from llm_grpc.runtime.adapters import read_adapter
from tests.export.peft_adapters import Tensors, matrices, save_adapter

Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Change = Callable[[Tensors], object]


@pytest.fixture(scope="module")
def roomy(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("roomy") / "model"
    export(str(checkpoint), directory, "random", recipe=Recipe(max_adapter_rank=8))
    return directory


@pytest.fixture
def tensors(checkpoint: Path) -> Tensors:
    return matrices(checkpoint, 1, targets=("q_proj", "down_proj"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA"),
        ({"use_dora": True}, "use_dora is True, which is not served"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which is not served"),
        ({"bias": "all"}, "bias is 'all', and biases of adapters are not served"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the"),
        ({"a_later_invention": "x"}, "a_later_invention is 'x', which is not served"),
        ({"r": 0}, "adapter_config.json is damaged: r: "),
        ({"r": None}, "adapter_config.json is damaged: r: "),
        ({"lora_alpha": float("nan")}, "adapter_config.json is damaged: lora_alpha: "),
        ({"rank_pattern": {"(": 4}}, "adapter_config.json is damaged: rank_pattern"),
        ({"alpha_pattern": [1]}, "adapter_config.json is damaged: alpha_pattern: "),
        ({"lora_alpha": 1e41}, r"q_proj is beyond fp32|down_proj is beyond fp32"),
        ({"r": 2}, r"q_proj.lora_A.weight is \[4, 64\], and must be \[2, 64\]|down_proj"),
        ({"target_modules": ["q_proj", "o_proj"]}, "has no matrices of o_proj, which target_modules names"),
    ],
)
def test_settings(config: dict[str, Any], said: str, tensors: Tensors, roomy: Path, tmp_path: Path) -> None:
    refused(save_adapter(tmp_path / "peft", tensors, **config), roomy, said)


def without(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def with_tensor(name: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(Q0), "has no base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        (with_tensor(Q0, torch.ones(4, 65)), r"q_proj.lora_A.weight is \[4, 65\], and must be \[4, 64\]"),
        (with_tensor(Q0, torch.ones(4)), r"q_proj.lora_A.weight is \[4\], and must be \[4, 64\]"),
        (with_tensor(Q0, torch.full((4, 64), torch.inf)), "q_proj.lora_A.weight has values that are not"),
        (with_tensor(Q0, torch.full((4, 64), torch.nan)), "q_proj.lora_A.weight has values that are not"),
        (with_tensor(Q0, torch.ones(4, 64, dtype=torch.int32)), "has values that are not finite numbers"),
        (with_tensor("base_model.model.lm_head.lora_A.weight", torch.ones(4, 64)), "lm_head is no linear"),
        (with_tensor(Q0.replace("layers.0", "layers.7"), torch.ones(4, 64)), "layers.7.self_attn.q_proj is"),
        (with_tensor("base_model.model.x.lora_embedding_A", torch.ones(4, 64)), "lora_embedding_A is no"),
        (with_tensor(Q0.replace("lora_A", "lora_magnitude_vector"), torch.ones(4)), "is no matrix of a LoRA"),
        (Tensors.clear, "target_modules names|holds no matrices"),
    ],
)  # fmt: skip
def test_matrices(change: Change, said: str, tensors: Tensors, roomy: Path, tmp_path: Path) -> None:
    change(tensors)
    refused(save_adapter(tmp_path / "peft", tensors, target_modules=["q_proj"]), roomy, said)


def refused(source: Path, model_dir: Path, said: str) -> None:
    target = source.parent / "adapter"
    with pytest.raises(ExportError, match=said) as caught:
        export_adapter(source, target, model_dir)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_files_that_are_not_there_or_damaged(tensors: Tensors, roomy: Path, tmp_path: Path) -> None:
    source = save_adapter(tmp_path / "peft", tensors)
    weights = source / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(source, roomy, "cannot read .*adapter_model.safetensors")
    weights.rename(source / "adapter_model.bin")
    refused(source, roomy, "adapters are read from safetensors alone")
    (source / "adapter_config.json").write_text("{")
    refused(source, roomy, "is not valid JSON")
    (source / "adapter_config.json").unlink()
    refused(source, roomy, "is not a PEFT directory: cannot read")


def test_where_it_goes(
    tensors: Tensors, roomy: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = save_adapter(tmp_path / "peft", tensors), tmp_path / "new" / "adapter"
    with pytest.raises(ExportError, match="has no room for adapters: export it with --max-adapter-rank"):
        export_adapter(source, target, model_dir)
    with pytest.raises(ExportError, match="exists and is not an adapter directory"):
        export_adapter(source, roomy, roomy)
    with pytest.raises(ExportError, match="exists and is not an adapter directory"):
        export_adapter(source, source, roomy)
    assert main(["export-adapter", str(source), str(target), "--model", str(roomy)]) == 0
    assert capsys.readouterr().out == f"wrote {target}: rank 4, 6 linear layers\n"
    before = (target / ADAPTER).read_text()
    save_adapter(source, tensors, lora_alpha=1)
    assert main(["export-adapter", str(source), str(target), "--model", str(roomy)]) == 0
    assert (target / ADAPTER).read_text() != before
    assert [path.name for path in target.parent.iterdir()] == ["adapter"]


@pytest.mark.parametrize("rank", [-1, 1025])
def test_room(rank: int) -> None:
    with pytest.raises(ExportError, match=r"--max-adapter-rank is .* and must be 0 to 1024"):
        Recipe(max_adapter_rank=rank)


def changed_arrays(directory: Path, **arrays: object) -> None:
    """Write other arrays, and what describes them, as if they were an export's."""
    with np.load(directory / ADAPTER_WEIGHTS) as found:
        kept = {name: found[name] for name in found}
    np.savez(directory / ADAPTER_WEIGHTS, **{**kept, **arrays})
    manifest = json.loads((directory / ADAPTER).read_text())
    manifest["weights"] = file_entry(directory / ADAPTER_WEIGHTS).model_dump()
    (directory / ADAPTER).write_text(json.dumps(manifest))


MODULE = "model.layers.0.self_attn.q_proj"


def bad_byte(directory: Path) -> None:
    path = directory / ADAPTER_WEIGHTS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_manifest(**fields: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        manifest = json.loads((directory / ADAPTER).read_text())
        (directory / ADAPTER).write_text(json.dumps({**manifest, **fields}))

    return change


def other_arrays(**arrays: object) -> Callable[[Path], None]:
    return lambda directory: changed_arrays(directory, **{f"{MODULE}.{k}": v for k, v in arrays.items()})


ONES = np.ones((64, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shutil.rmtree, "is not an adapter directory: cannot read"),
        (bad_byte, "adapter.npz has .* and the manifest says"),
        (other_manifest(format=2), "adapter.json is damaged: format"),
        (other_manifest(base="0" * 64), "is an adapter of another model: export it for this one"),
        (other_manifest(modules=["lm_head"]), "adapter.npz is damaged: .*lm_head.down"),
        (other_manifest(rank=3), r"has \[\d+, 4\] and \[4, \d+\], .* r at most 3"),
        (other_arrays(down=ONES[:63]), r"q_proj has \[63, 4\] and \[4, 64\], and the model takes \[64, r\]"),
        (other_arrays(up=ONES), r"q_proj has \[64, 4\] and \[64, 4\]"),
        (other_arrays(down=ONES.astype(np.float64)), "q_proj is float64 and float32, and must be float32"),
        (other_arrays(down=ONES * np.nan), "q_proj has values that are not finite"),
        (other_arrays(down=np.array(["x"], object)), "adapter.npz is damaged: Object arrays"),
    ],
)  # fmt: skip
def test_a_directory_that_is_read(
    change: Callable[[Path], None], said: str, tensors: Tensors, roomy: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "adapter"
    export_adapter(save_adapter(tmp_path / "peft", tensors), directory, roomy)
    room = load_manifest(roomy).adapters
    assert room
    assert read_adapter(directory, room).rank == 4
    change(directory)
    with pytest.raises(ManifestError, match=said) as caught:
        read_adapter(directory, room)
    assert "\n" not in str(caught.value)
