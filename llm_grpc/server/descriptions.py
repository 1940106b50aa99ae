"""The descriptions of models and of their load, as the contract writes them."""

from __future__ import annotations

from llm_grpc.config import (
    MAX_BATCH_ITEMS,
    MAX_CONSTRAINT_BYTES,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    MAX_TOKEN_LIST,
    MAX_TOP_LOGPROBS,
)
from llm_grpc.server.model_host import ModelHost, State
from llm_grpc.server.served_model import ServedModel
from llm_grpc.v1 import admin_pb2, model_pb2

_STATES = {
    State.LOADING: model_pb2.MODEL_STATE_LOADING,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
}


def to_model(host: ModelHost, is_default: bool, max_priority: int) -> model_pb2.Model:
    """The description of a model for a caller whose priority is at most ``max_priority``: name, state and
    whether it is the default while it is loading.
    """
    described = _loaded(host.served, max_priority) if host.served else model_pb2.Model()
    described.name, described.state, described.is_default = host.name, _STATES[host.state], is_default
    return described


def _loaded(model: ServedModel, max_priority: int) -> model_pb2.Model:
    manifest = model.manifest
    return model_pb2.Model(
        kind=model_pb2.MODEL_KIND_DECODER_ONLY,
        limits=model_pb2.Limits(
            context_tokens=model.context_tokens,
            max_prompt_tokens=model.max_prompt_tokens,
            max_tokens=model.max_tokens,
            max_stop_strings=MAX_STOP_STRINGS,
            max_stop_string_bytes=MAX_STOP_STRING_BYTES,
            max_message_bytes=model.max_message_bytes,
            max_sequences=model.max_sequences,
            max_top_logprobs=MAX_TOP_LOGPROBS,
            max_token_list=MAX_TOKEN_LIST,
            max_constraint_bytes=MAX_CONSTRAINT_BYTES,
            max_batch_items=MAX_BATCH_ITEMS,
            max_priority=max_priority,
        ),
        defaults=model_pb2.Defaults(
            max_tokens=model.default_max_tokens,
            temperature=model.defaults.temperature,
            top_p=model.defaults.top_p,
            top_k=model.defaults.top_k,
            frequency_penalty=model.defaults.frequency_penalty,
            presence_penalty=model.defaults.presence_penalty,
        ),
        digest=model.digest,
        architecture=manifest.architecture,
        weights=manifest.weights,
        lowering=manifest.lowering,
        vocabulary_size=manifest.vocabulary_size,
        capabilities=model_pb2.Capabilities(
            chat_template=model.has_chat_template,
            tools=model.has_tools,
            constraints=model.takes_constraints,
            adapters=model.takes_adapters,
        ),
        provider=model.runtime.provider,
        adapters=[adapter.name for adapter in model.adapters.loaded],
    )


def to_load(models: list[admin_pb2.ModelLoad], ready: bool, draining: bool) -> admin_pb2.GetLoadResponse:
    """The load of a server whose models have these."""
    return admin_pb2.GetLoadResponse(
        requests_running=sum(model.requests_running for model in models),
        requests_waiting=sum(model.requests_waiting for model in models),
        max_running=sum(model.max_running for model in models),
        max_waiting=sum(model.max_waiting for model in models),
        kv_utilization=max(model.kv_utilization for model in models),
        ready=ready,
        draining=draining,
        models=models,
    )
