"""Which attention a configuration asks for, found by running the model without weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import no_init_weights

from llm_grpc.errors import ExportError
from llm_grpc.export.attention import AttentionShape, current_step
from llm_grpc.export.hooked import TorchAttention, implementation_for
from llm_grpc.export.refusals import refuse_by_configuration, refuse_by_layers
from llm_grpc.export.traceable import Traceable


@dataclass
class _Probe:
    """Takes down each layer's attention and attends to nothing."""

    layers: list[tuple[int, AttentionShape]] = field(default_factory=list)

    def attend(
        self, layer: int, shape: AttentionShape,
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        self.layers.append((layer, shape))
        return query


def attention_of(config: PretrainedConfig) -> list[AttentionShape]:
    """The attention of each layer, from a run on tensors that have shapes and no values: no weight is made.

    Raises:
        ExportError: the architecture cannot be exported; the message names it and the reason.
    """
    refuse_by_configuration(config)
    probe, config = _Probe(), deepcopy(config)
    # With a padding token some models look for it in the prompt, and there are no values to look at.
    config.pad_token_id = None
    token = current_step.set(probe)
    try:
        with (
            FakeTensorMode(shape_env=ShapeEnv()),
            no_init_weights(),
            torch.no_grad(),
            Traceable(config, experts=False),
        ):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation_for(config))
            _run(model.eval())
    except ExportError as error:
        raise ExportError(f"{config.model_type} cannot be exported: {error}") from error
    except (DataDependentOutputException, GuardOnDataDependentSymNode) as error:
        raise ExportError(
            f"{config.model_type} cannot be exported: its code branches on computed values, and a trace "
            "keeps the branch of its example"
        ) from error
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ExportError(f"{config.model_type} cannot be exported: it cannot be traced: {reason}") from error
    finally:
        current_step.reset(token)
    refuse_by_layers(config, probe.layers)
    return [shape for _, shape in probe.layers]


def _run(model: PreTrainedModel) -> None:
    if model.get_output_embeddings() is None:
        raise ExportError("it names no output projection")
    ids = torch.ones(1, 3, dtype=torch.int64)
    with TorchAttention(model.config):
        model(input_ids=ids, position_ids=torch.arange(3)[None], use_cache=False)
