"""A model directory without its weights: small, so that it travels; ``fill`` makes random ones in place.

Needs the extra export. ``python -m benchmarks.gpu.skeleton DIRECTORY [SHAPE...] [--recipe weights=bf16,...]``
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from benchmarks.gpu.shapes import END, SHAPES, Shape
from llm_grpc.export import stages
from llm_grpc.export.job import Job
from llm_grpc.export.mapped import without_weights
from llm_grpc.export.onnx_config import kv_cache_of
from llm_grpc.export.passes.weights import SOURCES, shape_of
from llm_grpc.export.progress import Lines
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.source import Source
from llm_grpc.export.swapped import swapped

WEIGHTS = "weights.json"
ALIGNMENT = 4096
"""Weights begin at pages: the runtime maps them."""


@dataclass(frozen=True)
class Tensor:
    """Where a weight lies in the data file, and what its numbers are.

    They are 1 where ``deviation`` is 0, else normal around 0. ``seed`` comes from the name: the same weight
    is the same in every format.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    deviation: float
    seed: int
    is_looked_up: bool
    """Rows are picked from it: a step does not read all of it."""


def make_skeleton(shape: Shape, directory: Path, recipe: Mapping[str, Any]) -> None:
    """Write graph, tokenizer and manifest of ``shape`` and, in weights.json, what the data file has to hold.

    ``recipe`` are the fields of ``Recipe`` that differ from their defaults.

    Raises:
        ExportError: the recipe or the architecture is none that can be exported.
    """
    directory.mkdir(parents=True, exist_ok=True)
    job = Job(Source("random weights", directory, 0, 0), shape.name, directory, Recipe(**recipe))
    job.config = AutoConfig.for_model(shape.architecture, **shape.config)
    job.kv_cache, job.eos_token_ids = kv_cache_of(job.config, job.dtype), (END,)
    job.model = without_weights(job.config).eval()
    job.model.tie_weights()
    job.tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), eos_token="<eos>")  # noqa: S106 - no secret
    progress = Lines(2)
    stages.trace(job, progress)
    stages.rewrite(job, progress)
    tensors: list[Tensor] = []
    with swapped(stages, "write_graph", partial(_write_graph, tensors)):
        stages.write(job, progress)
    stages.describe(job, progress)
    found = {"data": f"{job.graph.name}.data", "tensors": [asdict(tensor) for tensor in tensors]}
    (directory / WEIGHTS).write_text(json.dumps(found) + "\n", encoding="utf-8")


def _write_graph(tensors: list[Tensor], model: ir.Model, path: Path, *_: object) -> None:
    """The graph, whose weights lie in a file that is not there; ``tensors`` says where in it."""
    for value in model.graph.initializers.values():
        if SOURCES in value.meta:
            end = tensors[-1].offset + tensors[-1].length if tensors else 0
            tensors.append(_tensor(value, -(-end // ALIGNMENT) * ALIGNMENT))
            value.const_value = _outside(value, tensors[-1], path)
    ir.save(model, path)


def _tensor(value: ir.Value, offset: int) -> Tensor:
    assert value.const_value is not None
    name, shape = str(value.name), shape_of(value)
    return Tensor(
        name=name,
        dtype=value.const_value.dtype.name,
        shape=shape,
        offset=offset,
        length=value.const_value.nbytes,
        deviation=_deviation(name, shape),
        seed=zlib.crc32(name.encode()),
        is_looked_up=all(node.op_type == "Gather" for node, _ in value.uses()),
    )


def _deviation(name: str, shape: Sequence[int]) -> float:
    """Such that numbers stay of the size that they begin with, from layer to layer."""
    if len(shape) == 1:
        return 0.01 if "bias" in name else 0.0
    return 0.02 if "embed" in name else float(min(shape[0], shape[-1]) ** -0.5)


def _outside(value: ir.Value, tensor: Tensor, graph: Path) -> ir.ExternalTensor:
    assert value.const_value is not None
    return ir.ExternalTensor(
        f"{graph.name}.data", tensor.offset, tensor.length, value.const_value.dtype,
        shape=ir.Shape(tensor.shape), name=tensor.name, base_dir=graph.parent,
    )  # fmt: skip


def _tokenizer() -> Tokenizer:
    """Bytes are tokens: requests of a benchmark are ids anyway."""
    specials = ["<pad>", "<unk>", "<eos>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _recipe(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if part)


def main() -> None:
    """Write one directory for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES], help="all of them where none is named")
    parser.add_argument("--recipe", type=_recipe, default={"weights": "bf16", "lowering": "paged"})
    arguments = parser.parse_args()
    for name in arguments.shapes or SHAPES:
        make_skeleton(SHAPES[name], arguments.directory / name, arguments.recipe)
        print(arguments.directory / name)


if __name__ == "__main__":
    main()
