"""The packed step as optimum's exporter sees it: inputs, outputs, example values and the traced forward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import DummyInputGenerator, NormalizedTextConfig
from transformers import PretrainedConfig, PreTrainedModel

from llm_grpc import graph_names as names
from llm_grpc.export.attention import Step, StepTrace, current_step
from llm_grpc.export.element_type import ELEMENT_TYPES, dtype_of
from llm_grpc.export.fused_norm import fused_norms
from llm_grpc.export.fused_rotary import fused_rotary
from llm_grpc.export.half_trace import half_trace
from llm_grpc.export.hooked import TorchAttention, hooked
from llm_grpc.export.probe import attention_of
from llm_grpc.export.traceable import Traceable
from llm_grpc.manifest import KvCache

PAST = "past"

_DECODE, _CHUNK = 19, 22
NUM_TOKENS = _DECODE + _CHUNK
"""Decode rows and the chunk's tokens in the example: their sum, a prime, is no size of a model."""

_SETTLED = (
    "(?s).*ONNX export does not support duplicated values in 'index'",
    "(?s).*aten::index operator of advanced indexing",
    "Constant folding - Only steps=1 can be constant folded",
)
"""Warnings of the tracer. A mixture's experts are indexed with the tokens that chose one: none is negative,
and no token chooses an expert twice. The sizes of a padding are left to the runtime to fold."""


def kv_cache_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> KvCache:
    """The cache's shape for a decoder's configuration, and ``dtype`` as its type.

    Raises:
        ExportError: the architecture cannot be exported.
    """
    layers = attention_of(config)
    return KvCache(
        num_layers=len(layers),
        num_heads=layers[0].num_kv_heads,
        head_dim=layers[0].head_dim,
        dtype=ELEMENT_TYPES[dtype].name,
    )


class _StepInputs(DummyInputGenerator):
    """Example values: decode rows at length 1, then a chunk from the first token on."""

    SUPPORTED_INPUT_NAMES = (*names.STEP_INPUTS, PAST)

    def __init__(self, task: str, normalized_config: NormalizedTextConfig, **_: Any) -> None:
        self._kv = kv_cache_of(normalized_config.config)

    def generate(self, input_name: str, *_: Any, float_dtype: str = "fp32", **__: Any) -> Any:
        """The value of one input; caches are of ``float_dtype``."""
        if input_name == PAST:
            shape = (self._kv.num_heads, 16, self._kv.head_dim)
            dtype = dtype_of(float_dtype)
            layer = tuple(torch.zeros(batch, *shape, dtype=dtype) for batch in (_DECODE, _DECODE, 1, 1))
            return [layer for _ in range(self._kv.num_layers)]
        return {
            names.INPUT_IDS: torch.ones(1, NUM_TOKENS, dtype=torch.int64),
            names.POSITION_IDS: torch.tensor([[*[1] * _DECODE, *range(_CHUNK)]]),
            names.LOGIT_ROWS: torch.tensor([0, _DECODE]),
            names.NUM_DECODE: torch.tensor([_DECODE]),
            names.DECODE_END: torch.tensor([_DECODE]),
            names.DECODE_SEQLENS: torch.ones(_DECODE, dtype=torch.int32),
            names.DECODE_TOTAL: torch.tensor(2, dtype=torch.int32),
            names.CHUNK_SEQLENS: torch.tensor([_CHUNK - 1], dtype=torch.int32),
            names.CHUNK_TOTAL: torch.tensor(_CHUNK, dtype=torch.int32),
        }[input_name]


class PackedStepConfig(OnnxConfig):
    """optimum's description of the packed step, whose caches are of ``float_dtype``: fp32, fp16 or bf16."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (_StepInputs,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Input names and their dynamic axes."""
        return {
            names.INPUT_IDS: {1: "tokens"},
            names.POSITION_IDS: {1: "tokens"},
            names.LOGIT_ROWS: {0: "rows"},
            names.NUM_DECODE: {},
            names.DECODE_END: {},
            names.DECODE_SEQLENS: {0: "decode_rows"},
            names.DECODE_TOTAL: {},
            names.CHUNK_SEQLENS: {},
            names.CHUNK_TOTAL: {},
            **self._caches(names.past),
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Output names and their dynamic axes."""
        return {names.LOGITS: {0: "rows"}, **self._caches(names.present)}

    def _caches(self, name: Any) -> dict[str, dict[int, str]]:
        axes = {"decode": {0: "decode_rows", 2: "capacity"}, "chunk": {2: "capacity"}}
        layers = range(kv_cache_of(self._config).num_layers)
        return {
            name(i, kind, half): axes[half] for i in layers for half in names.HALVES for kind in names.KINDS
        }

    def generate_dummy_inputs(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Example values for every input, in the order of the traced forward."""
        generator = _StepInputs(self.task, self._normalized_config)
        inputs = _StepInputs.SUPPORTED_INPUT_NAMES
        return {name: generator.generate(name, float_dtype=self.float_dtype) for name in inputs}

    def rename_ambiguous_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Names stay as they are."""
        return inputs

    def ordered_inputs(self, _: PreTrainedModel) -> dict[str, dict[int, str]]:
        """The graph's inputs in the order of the traced forward."""
        return self.inputs

    @contextmanager
    def patch_model_for_export(self, model: PreTrainedModel, *_: Any, **__: Any) -> Iterator[None]:
        """Give the model the packed step as its forward while it is traced."""
        forward = model.forward
        model.forward = self.packed_forward(model, forward)
        try:
            with (
                hooked(model),  # may change the model's modules
                fused_norms(model),
                fused_rotary(model),
                Traceable(model.config, num_tokens=NUM_TOKENS),
                half_trace(dtype_of(self.float_dtype)),
                warnings.catch_warnings(),
            ):
                for doubt in _SETTLED:
                    warnings.filterwarnings("ignore", message=doubt, category=UserWarning)
                yield
        finally:
            model.forward = forward

    def packed_forward(self, model: PreTrainedModel, forward: Any) -> Any:
        """What is traced in the place of ``forward``."""
        return _packed_forward(model, forward)


def _packed_forward(model: PreTrainedModel, forward: Any) -> Any:
    def packed(
        input_ids: torch.Tensor, position_ids: torch.Tensor, logit_rows: torch.Tensor,
        num_decode: torch.Tensor, decode_end: torch.Tensor,
        decode_seqlens: torch.Tensor, decode_total: torch.Tensor,
        chunk_seqlens: torch.Tensor, chunk_total: torch.Tensor, past: list[Any],
    ) -> dict[str, Any]:  # fmt: skip
        step = StepTrace(
            num_decode, decode_end, decode_seqlens, decode_total, chunk_seqlens, chunk_total, past
        )
        logits = run_packed(model, forward, step, input_ids, position_ids, logit_rows)
        return {names.LOGITS: logits, "present": [step.present[layer] for layer in sorted(step.present)]}

    return packed


def run_packed(
    model: PreTrainedModel, forward: Any, step: Step,
    input_ids: torch.Tensor, position_ids: torch.Tensor, logit_rows: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The model's own forward over the packed tokens, its output projection over the gathered rows alone.

    Returns:
        Logits ``[rows, vocabulary]`` in fp32.
    """
    token = current_step.set(step)
    gather = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: (args[0][0].index_select(0, logit_rows),)
    )
    try:
        with TorchAttention(model.config):
            logits = forward(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    finally:
        gather.remove()
        current_step.reset(token)
    # The last node writes into the caller's memory: one more is a copy of all logits.
    return logits if logits.dtype == torch.float32 else logits.float()
