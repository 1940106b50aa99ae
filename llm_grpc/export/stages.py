"""The stages of an export, in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import onnx
import onnx_ir as ir
import torch
from optimum.exporters.onnx.convert import export as optimum_export
from torch.jit import TracerWarning
from transformers import PreTrainedModel

from llm_grpc.errors import ExportError
from llm_grpc.export.attention_paged import block_size_of
from llm_grpc.export.calibrate import affordable_rows, calibration_windows
from llm_grpc.export.calibrate import calibrate as run_calibration
from llm_grpc.export.device_graphs import write_device_graphs
from llm_grpc.export.element_type import ELEMENT_TYPES
from llm_grpc.export.formats import choose_formats, table
from llm_grpc.export.graph_file import state_interface, write_graph
from llm_grpc.export.job import Job
from llm_grpc.export.load import load_config, load_model, load_tokenizer
from llm_grpc.export.onnx_config import PackedStepConfig, kv_cache_of
from llm_grpc.export.paged_config import PagedStepConfig
from llm_grpc.export.passes.adapters import make_room
from llm_grpc.export.passes.cut import cut
from llm_grpc.export.passes.half import cast_around
from llm_grpc.export.passes.int8_cache import int8_cache, stated_cache
from llm_grpc.export.passes.packed_attention import pack_attention
from llm_grpc.export.passes.paged_attention import is_recordable, pack_paged_attention
from llm_grpc.export.passes.quantise import Feedbacks
from llm_grpc.export.passes.quantise import quantise as write_formats
from llm_grpc.export.passes.skip_norms import skip_norms
from llm_grpc.export.passes.smooth import smooth
from llm_grpc.export.passes.tidy import tidy, with_shapes, without_shapes
from llm_grpc.export.passes.weights import attach
from llm_grpc.export.progress import Progress
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.refusals import refuse_by_graph
from llm_grpc.export.skeleton import weightless
from llm_grpc.export.source import first_line
from llm_grpc.export.swapped import swapped
from llm_grpc.export.tokenizer_files import CHAT_TEMPLATE, TOKENIZER, TOOL_CHAT_TEMPLATE, write_tokenizer
from llm_grpc.export.write import write_manifest
from llm_grpc.graph_names import layer_of
from llm_grpc.machine import available_memory_bytes
from llm_grpc.manifest import FORMAT, Manifest, file_entry

OPSET = 18
_RECORDED = ("torch", "transformers", "optimum", "optimum-onnx", "onnx")


def load(job: Job, _: Progress) -> None:
    """The torch model and its tokenizer, after the architecture is known to be one that can be exported."""
    job.kv_cache = kv_cache_of(load_config(job.source), job.dtype)
    if job.recipe.stages > job.kv_cache.num_layers:
        raise ExportError(
            f"--stages is {job.recipe.stages}, and {job.source.name} has {job.kv_cache.num_layers} layers"
        )
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


def calibrate(job: Job, progress: Progress) -> None:
    """What the layers multiply, from the recipe's text."""
    assert job.recipe.calibrate
    job.tokenizer.backend_tokenizer.save(str(job.directory / TOKENIZER))
    context_tokens = job.config.max_position_embeddings
    windows = calibration_windows(job.recipe.calibrate, job.directory / TOKENIZER, context_tokens)
    num_rows = affordable_rows(job.model, available_memory_bytes())
    job.calibration = run_calibration(job.model, windows, num_rows, progress.part)
    # The graph knows a shared parameter by another of its names.
    tensors = job.model.state_dict(keep_vars=True)
    rows = job.calibration.rows
    known = {id(tensors[name]): found for name, found in rows.items()}
    rows.update((name, known[id(tensor)]) for name, tensor in tensors.items() if id(tensor) in known)


def trace(job: Job, _: Progress) -> None:
    """The graph without its weights, as optimum's exporter writes it."""
    float_dtype = ELEMENT_TYPES[job.dtype].weights
    described = PagedStepConfig if job.is_paged else PackedStepConfig
    config = described(job.config, task="text-generation", float_dtype=float_dtype)
    try:
        with torch.no_grad(), warnings.catch_warnings(), _parameters_as_inputs(job.model, job.dtype):
            # optimum traces with the TorchScript exporter, which torch deprecates; what the tracer makes
            # constant (numbers of heads, that there is no mask) is constant.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", TracerWarning)
            optimum_export(
                job.model, config, job.graph, opset=OPSET,
                disable_dynamic_axes_fix=True, do_constant_folding=False,
            )  # fmt: skip
    except (ExportError, OSError, MemoryError):
        raise
    except Exception as error:  # the tracer runs the architecture's own code
        raise ExportError(f"{job.config.model_type} cannot be exported: {first_line(error)}") from error


@contextmanager
def _parameters_as_inputs(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Parameters become inputs of the graph, under their names, and the trace needs none of their values.

    torch's exporter can do that, and optimum's passes no word of it on. Its inference of shapes would make
    protobufs of all parameters, whose shapes it has from the graph.
    """
    export = partial(torch.onnx.export, export_params=False)
    infer = torch._C._jit_pass_onnx_graph_shape_type_inference

    def infer_without_values(graph: torch.Graph, _: object, opset: int) -> None:
        infer(graph, {}, opset)

    with (
        swapped(torch.onnx, "export", export),
        swapped(torch._C, infer.__name__, infer_without_values),
        weightless(model, dtype),
    ):
        yield


def rewrite(job: Job, _: Progress) -> None:
    """The passes, and what the graph was made for."""
    traced = onnx.load(job.graph)
    refuse_by_graph(traced.graph, job.config.model_type, job.kv_cache.num_layers, job.recipe.lowering)
    job.rewritten = with_shapes(traced)
    cast_around(job.rewritten)
    tidy(job.rewritten)
    attach(job.rewritten, job.model.state_dict())
    for apply in job.passes:
        apply(job.rewritten)
    if job.recipe.kv_cache == "int8":
        assert job.calibration
        int8_cache(job.rewritten, job.calibration)
    if job.is_paged:
        pack_paged_attention(job.rewritten, job.config.max_position_embeddings)
        job.recordable = is_recordable(job.rewritten)
    else:
        pack_attention(job.rewritten, job.config.max_position_embeddings)
        job.kv_cache = stated_cache(job.rewritten, job.kv_cache)
    if job.recipe.max_adapter_rank:
        job.adapters = make_room(job.rewritten, job.model.state_dict(), job.recipe.max_adapter_rank)
    state_interface(job.rewritten, job.config.vocab_size, job.config.max_position_embeddings, job.kv_cache)


def quantise(job: Job, progress: Progress) -> None:
    """The format of each layer."""
    recipe, graph = job.recipe, job.rewritten
    rows = job.calibration.rows if job.calibration else {}
    if recipe.weights == "int8":
        smooth(graph, rows)
    feedbacks = Feedbacks(rows)
    choices = choose_formats(graph, recipe, rows, feedbacks, progress.part)
    for line in table(choices):
        progress.say(line)
    write_formats(graph, {choice.name: choice.format for choice in choices}, feedbacks)


def write(job: Job, progress: Progress) -> None:
    """The graph, or those of the stages, with their weights, one at a time; the torch model is dropped."""
    job.graph.unlink()
    skip_norms(job.rewritten)
    for name, graph in zip(job.graphs, cut(job.rewritten, job.recipe.stages), strict=True):
        without_shapes(graph)
        job.stage_layers += (_num_layers(graph),)
        write_graph(graph, job.directory / name, progress.part)
    if job.is_paged:
        write_device_graphs(job.directory, job.config.vocab_size, job.kv_cache, job.stage_layers)
    job.rewritten = job.model = job.calibration = None


def describe(job: Job, _: Progress) -> None:
    """The tokenizer, the chat templates and the manifest."""
    directory = job.directory
    texts = write_tokenizer(job.tokenizer, directory)
    manifest = Manifest(
        format=FORMAT,
        name=job.name,
        architecture=job.config.model_type,
        lowering=job.recipe.lowering,
        weights=job.recipe.weights,
        graph=job.graphs[0],
        tokenizer=TOKENIZER,
        chat_template=CHAT_TEMPLATE if CHAT_TEMPLATE in texts else None,
        vocabulary_size=job.config.vocab_size,
        context_tokens=job.config.max_position_embeddings,
        eos_token_ids=job.eos_token_ids,
        kv_cache=job.kv_cache,
        files={path.name: file_entry(path) for path in sorted(directory.iterdir())},
        versions={package: version(package) for package in _RECORDED},
        source=job.source.recorded_name,
        block_size=block_size_of(job.kv_cache.head_dim) if job.is_paged else None,
        recordable=job.recordable,
        stages=job.graphs if len(job.graphs) > 1 else (),
        stage_layers=job.stage_layers if len(job.graphs) > 1 else (),
        tool_chat_template=TOOL_CHAT_TEMPLATE if TOOL_CHAT_TEMPLATE in texts else None,
        special_tokens=job.tokenizer.special_tokens_map,
        adapters=job.adapters,
    )
    write_manifest(directory, manifest)


def _num_layers(graph: ir.Model) -> int:
    """Layers whose keys and values are inputs."""
    found = {layer_of(value.name or "") for value in graph.graph.inputs}
    return len(found - {None})


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config
    ids = (generation.eos_token_id if generation else None) or model.config.eos_token_id
    if ids is None:
        raise ExportError("the model's configuration names no end-of-sequence token")
    return tuple(ids) if isinstance(ids, list) else (ids,)


Stage = tuple[str, Callable[[Job, Progress], None]]


def stages_of(recipe: Recipe) -> list[Stage]:
    """What an export does before its verification, which has stages of its own."""
    found: list[Stage] = [("loading the model", load)]
    if recipe.calibrate:
        found.append(("calibrating", calibrate))
    found += [("tracing it through optimum", trace), ("rewriting the graph", rewrite)]
    if recipe.is_quantised:
        found.append(("choosing the format of each layer", quantise))
    return [
        *found,
        ("writing the weights", write),
        ("writing the tokenizer and the manifest", describe),
    ]
