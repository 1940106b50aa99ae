"""The model and the tokenizer of a source, in fp32."""

from __future__ import annotations

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from llm_grpc.errors import ExportError
from llm_grpc.export.source import Source, first_line

_FAULTS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)
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
    """The model with eager attention in fp32, ready to run. No remote code is run.

    Raises:
        ExportError: transformers cannot load it, or the checkpoint lacks weights that the model has.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.directory,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except _FAULTS as error:
        raise ExportError(f"cannot load {source.name}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        # transformers fills them with random numbers and goes on.
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
