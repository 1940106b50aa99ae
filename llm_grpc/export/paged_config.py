"""The packed step of lowering ``paged`` as optimum's exporter sees it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from llm_grpc import graph_names as names
from llm_grpc.export.attention_paged import PagedTrace
from llm_grpc.export.element_type import dtype_of
from llm_grpc.export.onnx_config import NUM_TOKENS, PAST, PackedStepConfig, kv_cache_of, run_packed

_BLOCKS, _BLOCK_SIZE, _PLACES = 7, 16, 5
_SEQUENCES = 3
"""In the example: two decode rows, then a chunk from the first token on."""


class PagedStepConfig(PackedStepConfig):
    """optimum's description of the step over blocks, whose caches are of ``float_dtype``: fp16 or bf16."""

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Input names and their dynamic axes."""
        return {
            names.INPUT_IDS: {1: "tokens"},
            names.POSITION_IDS: {1: "tokens"},
            names.LOGIT_ROWS: {0: "rows"},
            names.SEQUENCE_ENDS: {0: "ends"},
            names.PAST_LENGTHS: {0: "sequences"},
            names.BLOCK_TABLE: {0: "sequences", 1: "places"},
            names.SLOT_MAPPING: {0: "tokens"},
            names.ATTENTION_BOUNDS: {},
            **self._blocks(names.past_blocks),
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Output names and their dynamic axes."""
        rows = {names.GREEDY: {0: "rows"}, names.LOGITS: {0: "rows"}}
        return {**rows, **self._blocks(names.present_blocks)}

    def _blocks(self, name: Any) -> dict[str, dict[int, str]]:
        axes = {0: "blocks", 1: "block_size"}
        layers = range(kv_cache_of(self._config).num_layers)
        return {name(layer, kind): axes for layer in layers for kind in names.KINDS}

    def generate_dummy_inputs(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Example values for every input, in the order of the traced forward."""
        kv, dtype = kv_cache_of(self._config), dtype_of(self.float_dtype)
        shape = (_BLOCKS, _BLOCK_SIZE, kv.num_heads, kv.head_dim)
        caches = [tuple(torch.zeros(shape, dtype=dtype) for _ in names.KINDS) for _ in range(kv.num_layers)]
        chunk = NUM_TOKENS - 2
        return {
            names.INPUT_IDS: torch.ones(1, NUM_TOKENS, dtype=torch.int64),
            names.POSITION_IDS: torch.tensor([[1, 1, *range(chunk)]]),
            names.LOGIT_ROWS: torch.tensor([0, 2]),
            names.SEQUENCE_ENDS: torch.tensor([0, 1, 2, NUM_TOKENS], dtype=torch.int32),
            names.PAST_LENGTHS: torch.tensor([1, 1, 0], dtype=torch.int32),
            names.BLOCK_TABLE: torch.zeros(_SEQUENCES, _PLACES, dtype=torch.int32),
            names.SLOT_MAPPING: torch.arange(NUM_TOKENS, dtype=torch.int32),
            names.ATTENTION_BOUNDS: torch.tensor([chunk, chunk, 0], dtype=torch.int32),
            PAST: caches,
        }

    def packed_forward(self, model: PreTrainedModel, forward: Any) -> Any:
        """What is traced in the place of ``forward``."""

        def paged(
            input_ids: torch.Tensor, position_ids: torch.Tensor, logit_rows: torch.Tensor,
            sequence_ends: torch.Tensor, past_lengths: torch.Tensor, block_table: torch.Tensor,
            slot_mapping: torch.Tensor, attention_bounds: torch.Tensor, past: list[Any],
        ) -> dict[str, Any]:  # fmt: skip
            step = PagedTrace(sequence_ends, past_lengths, block_table, slot_mapping, attention_bounds, past)
            logits = run_packed(model, forward, step, input_ids, position_ids, logit_rows)
            return {
                names.GREEDY: logits.argmax(-1),
                names.LOGITS: logits,
                "present": [step.present[layer] for layer in sorted(step.present)],
            }

        return paged
