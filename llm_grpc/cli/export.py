from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from llm_grpc.cli.extras import needs_extra
from llm_grpc.cli.interrupts import INTERRUPTED, interruptible
from llm_grpc.cli.messages import fail

INSTALL = "install llm-grpc[export,cpu]"


def export(  # noqa: PLR0913 - a flag each
    source: str,
    model_dir: Path,
    /,
    *,
    name: str = "",
    weights: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "fp32",
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    kv_cache: Literal["auto", "int8"] = "auto",
    calibrate: Path | None = None,
    mean_bits: float = 7.0,
    block_size: int = 32,
    lowering: Literal["slots", "paged"] = "slots",
    stages: int = 1,
    max_adapter_rank: int = 0,
    text: Path | None = None,
    tokens: int = 32,
    allow_inexact: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write a model directory.

    Parameters
    ----------
    source
        Directory of the model, or its id on the hub.
    model_dir
        Directory to write; one that holds an exported model is replaced.
    name
        Name that requests use; empty is the last part of SOURCE.
    weights
        Format of the weights on disk and in memory. On a CPU int8 serves many requests fastest, int4 is the
        smallest, and fp32 is exact; fp16 and bf16 are for NVIDIA GPUs.
    dtype
        What is computed in; auto is the type of the weights, fp32 for int8 and int4. 16 bits need a GPU.
    kv_cache
        Type of the key-value cache; auto is that of what is computed. int8 takes a quarter of the memory of
        fp32 and is faster for many requests at long contexts; it needs a text to calibrate.
    calibrate
        UTF-8 text like what the model will see, from which int8 and int4 are fitted: a few thousand words.
    mean_bits
        Bits per weight of an int4 model that is calibrated: the worst layers get 8 while the mean allows it.
    block_size
        Weights of an int4 model that share a scale: 32, 64 or 128. More are faster for a single stream,
        smaller, and less exact.
    lowering
        How attention finds the cache: slots is for CPUs, paged for NVIDIA GPUs, in fp16 or bf16.
    stages
        Graphs that the layers are divided into, as many as there are devices to run them.
    max_adapter_rank
        Sum of the ranks of the adapters that are loaded at once; 0 takes none, and costs nothing.
    text
        UTF-8 text on which the perplexity of both models is compared.
    tokens
        Tokens that are generated after each prompt of the verification.
    allow_inexact
        Keep a model that is outside the limits of its weight format, and record that.
    """
    with interruptible():
        try:
            with needs_extra(INSTALL):
                from llm_grpc.export.command import export as run_export  # noqa: PLC0415 - imports torch
                from llm_grpc.export.recipe import Recipe  # noqa: PLC0415 - with the others
                from llm_grpc.export.verify import VerifyOptions  # noqa: PLC0415 - imports torch

                recipe = Recipe(
                    weights, calibrate, mean_bits, dtype, kv_cache, block_size, lowering, stages,
                    max_adapter_rank,
                )  # fmt: skip
                run_export(source, model_dir, name, VerifyOptions(tokens, text, allow_inexact), recipe)
        except KeyboardInterrupt:
            return fail("interrupted; nothing was written", INTERRUPTED)
    return 0
