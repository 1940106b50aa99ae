"""The stages of an export, in order."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from optimum.exporters.onnx.convert import export as optimum_export
from torch.jit import TracerWarning
from transformers import PreTrainedModel

from llm_grpc.errors import ExportError
from llm_grpc.export.graph_file import state_interface, take_graph, write_graph
from llm_grpc.export.load import load_config, load_model, load_tokenizer
from llm_grpc.export.onnx_config import PackedStepConfig, kv_cache_of
from llm_grpc.export.refusals import refuse_by_graph
from llm_grpc.export.source import Source, first_line
from llm_grpc.export.tied import share_transposed
from llm_grpc.export.write import write_manifest
from llm_grpc.manifest import FORMAT, Manifest, file_entry

GRAPH, TOKENIZER, CHAT_TEMPLATE = "model.onnx", "tokenizer.json", "chat_template.jinja"
OPSET = 18
_RECORDED = ("torch", "transformers", "optimum", "optimum-onnx", "onnx")

GraphPass = Callable[[onnx.ModelProto], object]

GRAPH_PASSES: tuple[GraphPass, ...] = (share_transposed,)
"""What is done to the graph after the trace, in order: each changes the model, weights included."""


@dataclass
class Job:
    """One export on its way: ``directory`` is where the files are written."""

    source: Source
    name: str
    directory: Path
    passes: tuple[GraphPass, ...] = GRAPH_PASSES
    model: PreTrainedModel | None = None
    """Until it is traced."""

    config: Any = None
    tokenizer: Any = None
    kv_cache: Any = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def graph(self) -> Path:
        """The graph's file."""
        return self.directory / GRAPH


def load(job: Job) -> None:
    """The torch model and its tokenizer, after the architecture is known to be one that can be exported."""
    job.kv_cache = kv_cache_of(load_config(job.source))
    job.tokenizer, job.model = load_tokenizer(job.source), load_model(job.source)
    job.config, job.eos_token_ids = job.model.config, _eos_token_ids(job.model)
    if not getattr(job.config, "max_position_embeddings", None):
        raise ExportError(
            f"{job.source.name}: config.json has no max_position_embeddings, the context's length"
        )
    last = max(job.tokenizer.get_vocab().values())
    if last >= job.config.vocab_size:
        raise ExportError(
            f"{job.source.name} has a tokenizer with ids up to {last} and a vocabulary of "
            f"{job.config.vocab_size}: they do not belong together"
        )


def trace(job: Job) -> None:
    """The graph, as optimum's exporter writes it; the torch model is dropped."""
    model, job.model = job.model, None
    config = PackedStepConfig(job.config, task="text-generation", float_dtype="fp32")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # optimum traces with the TorchScript exporter, which torch deprecates; what the tracer makes
            # constant (numbers of heads, that there is no mask) is constant.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", TracerWarning)
            optimum_export(model, config, job.graph, opset=OPSET, disable_dynamic_axes_fix=True)
    except (ExportError, OSError, MemoryError):
        raise
    except Exception as error:  # the tracer runs the architecture's own code
        raise ExportError(f"{job.config.model_type} cannot be exported: {first_line(error)}") from error
    finally:
        del model
        gc.collect()  # the model holds its own forward


def rewrite(job: Job) -> None:
    """The passes, and what the graph was made for."""
    graph = take_graph(job.graph)
    refuse_by_graph(graph.graph, job.config.model_type, job.kv_cache.num_layers)
    for apply in job.passes:
        apply(graph)
    state_interface(graph, job.config.vocab_size, job.config.max_position_embeddings, job.kv_cache)
    write_graph(graph, job.graph)


def describe(job: Job) -> None:
    """The tokenizer, the chat template and the manifest."""
    directory, template = job.directory, job.tokenizer.chat_template
    job.tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
    if template:
        (directory / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    manifest = Manifest(
        format=FORMAT,
        name=job.name,
        architecture=job.config.model_type,
        lowering="slots",
        weights="fp32",
        graph=GRAPH,
        tokenizer=TOKENIZER,
        chat_template=CHAT_TEMPLATE if template else None,
        vocabulary_size=job.config.vocab_size,
        context_tokens=job.config.max_position_embeddings,
        eos_token_ids=job.eos_token_ids,
        kv_cache=job.kv_cache,
        files={path.name: file_entry(path) for path in sorted(directory.iterdir())},
        versions={package: version(package) for package in _RECORDED},
        source=job.source.recorded_name,
    )
    write_manifest(directory, manifest)


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config
    ids = (generation.eos_token_id if generation else None) or model.config.eos_token_id
    if ids is None:
        raise ExportError("the model's configuration names no end-of-sequence token")
    return tuple(ids) if isinstance(ids, list) else (ids,)


STAGES: tuple[tuple[str, Callable[[Job], None]], ...] = (
    ("loading the model", load),
    ("tracing it through optimum", trace),
    ("rewriting the graph", rewrite),
    ("writing the tokenizer and the manifest", describe),
)
"""Before the verification, which has stages of its own."""
