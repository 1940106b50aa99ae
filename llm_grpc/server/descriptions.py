"""The description of a model, as the contract writes it."""

from __future__ import annotations

from llm_grpc.config import MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS
from llm_grpc.server.served_model import ServedModel
from llm_grpc.v1 import model_pb2


def to_model(model: ServedModel) -> model_pb2.Model:
    """The description of a model."""
    manifest = model.manifest
    return model_pb2.Model(
        name=model.name,
        kind=model_pb2.MODEL_KIND_DECODER_ONLY,
        limits=model_pb2.Limits(
            context_tokens=model.context_tokens,
            max_prompt_tokens=model.max_prompt_tokens,
            max_tokens=model.max_tokens,
            max_stop_strings=MAX_STOP_STRINGS,
            max_stop_string_bytes=MAX_STOP_STRING_BYTES,
            max_message_bytes=model.max_message_bytes,
        ),
        defaults=model_pb2.Defaults(
            max_tokens=model.default_max_tokens,
            temperature=model.defaults.temperature,
            top_p=model.defaults.top_p,
            top_k=model.defaults.top_k,
        ),
        digest=model.digest,
        architecture=manifest.architecture,
        weights=manifest.weights,
        lowering=manifest.lowering,
        vocabulary_size=manifest.vocabulary_size,
        capabilities=model_pb2.Capabilities(adapters=model.adapters.max_rank > 0),
        adapters=[adapter.name for adapter in model.adapters.loaded],
    )
