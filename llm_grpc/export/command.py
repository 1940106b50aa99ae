"""From a Hugging Face causal language model to a model directory."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from optimum.exporters.onnx.convert import export as optimum_export
from torch.jit import TracerWarning
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from llm_grpc.errors import ExportError
from llm_grpc.export.onnx_config import PackedStepConfig, kv_cache_of
from llm_grpc.export.tied import share_transposed
from llm_grpc.manifest import FORMAT, MANIFEST, Manifest, file_entry

log = logging.getLogger(__name__)

GRAPH, TOKENIZER, CHAT_TEMPLATE = "model.onnx", "tokenizer.json", "chat_template.jinja"
OPSET = 18
_RECORDED = ("torch", "transformers", "optimum", "optimum-onnx", "onnx")


def export(source: str, model_dir: Path, name: str = "") -> None:
    """Export ``source``, a directory or a hub id with safetensors weights, to ``model_dir``.

    The directory is written beside its place and renamed at the end, so that a failed export leaves nothing
    behind and an old directory stays whole until the new one is. No remote code is run.

    Args:
        source: what ``AutoModelForCausalLM.from_pretrained`` takes.
        model_dir: the directory to write; replaced if it is a model directory already.
        name: the model's name in requests; empty means the source's last path element.

    Raises:
        ExportError: the source cannot be loaded or exported, or ``model_dir`` is something else.
    """
    if model_dir.exists() and any(model_dir.iterdir()) and not (model_dir / MANIFEST).exists():
        raise ExportError(f"{model_dir} exists and is not a model directory: choose another or empty it")
    model, tokenizer = _load(source)
    model_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{model_dir.name}.", dir=model_dir.parent) as scratch:
        staging = Path(scratch) / "model"
        staging.mkdir()
        log.info("exporting the %s step through optimum", model.config.model_type)
        _write_graph(model, staging)
        _write_tokenizer(tokenizer, staging)
        _write_manifest(name or Path(source).name, model, tokenizer, staging)
        _replace(model_dir, staging, Path(scratch) / "old")
    log.info("wrote %s", model_dir)


def _load(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    log.info("loading %s", source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
        )
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot load {source}: {str(error).splitlines()[0]}") from error
    return model.eval(), tokenizer


def _write_graph(model: PreTrainedModel, directory: Path) -> None:
    config = PackedStepConfig(model.config, task="text-generation", float_dtype="fp32")
    with torch.no_grad(), warnings.catch_warnings():
        # optimum traces with the TorchScript exporter, which torch deprecates; what the tracer makes constant
        # (numbers of heads, that there is no mask) is constant.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        optimum_export(model, config, directory / GRAPH, opset=OPSET, disable_dynamic_axes_fix=True)
    graph = onnx.load(directory / GRAPH)
    share_transposed(graph)
    onnx.save(graph, directory / GRAPH)


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
    if tokenizer.chat_template:
        (directory / CHAT_TEMPLATE).write_text(tokenizer.chat_template)


def _write_manifest(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    config = model.config
    manifest = Manifest(
        format=FORMAT,
        name=name,
        architecture=config.model_type,
        lowering="slots",
        weights="fp32",
        graph=GRAPH,
        tokenizer=TOKENIZER,
        chat_template=CHAT_TEMPLATE if tokenizer.chat_template else None,
        vocabulary_size=config.vocab_size,
        context_tokens=config.max_position_embeddings,
        eos_token_ids=_eos_token_ids(model),
        kv_cache=kv_cache_of(config),
        files={path.name: file_entry(path) for path in sorted(directory.iterdir())},
        versions={package: version(package) for package in _RECORDED},
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config
    ids = (generation.eos_token_id if generation else None) or model.config.eos_token_id
    if ids is None:
        raise ExportError("the model's configuration names no end-of-sequence token")
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _replace(target: Path, staging: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
