"""The model and the tokenizer of a source."""

from __future__ import annotations

from contextlib import suppress

from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from llm_grpc.errors import ExportError
from llm_grpc.export.mapped import map_weights, without_weights
from llm_grpc.export.source import Source, first_line, weight_files

_FAULTS = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError,
)  # fmt: skip
"""What transformers raises, depending on what is wrong with a checkpoint."""


def load_config(source: Source) -> PretrainedConfig:
    """The configuration alone.

    Raises:
        ExportError: transformers does not know the architecture, or needs code that the checkpoint brings.
    """
    try:
        return AutoConfig.from_pretrained(source.directory, trust_remote_code=False, local_files_only=True)
    except _FAULTS as error:
        raise ExportError(f"cannot load {source.name}: {first_line(error)}") from error


def load_model(source: Source) -> PreTrainedModel:
    """The model with eager attention, its weights in the checkpoint's own dtypes. No remote code is run.

    The weights are mapped from the files and not copied: memory that is not backed by them does not grow with
    the model. What no file holds, such as the frequencies of the rotation, is fp32. ``reference.in_fp32``
    makes the model compute in fp32.

    Raises:
        ExportError: transformers cannot load it, or the checkpoint lacks weights that the model has.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = load_config(source)
    try:
        model = without_weights(config)
        missing = map_weights(model, weight_files(source))
        with suppress(OSError):  # without a file the model has one that its configuration implies
            model.generation_config = GenerationConfig.from_pretrained(
                source.directory, local_files_only=True
            )
    except _FAULTS as error:
        raise ExportError(f"cannot load {source.name}: {first_line(error)}") from error
    if missing:
        raise ExportError(
            f"cannot load {source.name}: it lacks {len(missing)} weights, {missing[0]} the first"
        )
    return model.eval()


def load_tokenizer(source: Source) -> PreTrainedTokenizerFast:
    """The fast tokenizer.

    Raises:
        ExportError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.directory, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # tokenizers raises bare Exception
        raise ExportError(f"cannot load {source.name}: no tokenizer: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ExportError(f"cannot load {source.name}: it has no fast tokenizer (tokenizer.json)")
    return tokenizer
