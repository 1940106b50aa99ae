"""From the project's own types to the contract's responses."""

from __future__ import annotations

from llm_grpc.sampling_params import FinishReason, SamplingParams
from llm_grpc.text.generator import TextDelta
from llm_grpc.v1 import llm_pb2

_FINISH_REASONS = {
    FinishReason.EOS: llm_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: llm_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: llm_pb2.FINISH_REASON_LENGTH,
    FinishReason.CONTEXT_LIMIT: llm_pb2.FINISH_REASON_CONTEXT_LIMIT,
    FinishReason.CANCELLED: llm_pb2.FINISH_REASON_CANCELLED,
    FinishReason.TOOL_CALLS: llm_pb2.FINISH_REASON_TOOL_CALLS,
}


def to_response(
    delta: TextDelta, sequence: int, params: SamplingParams, name: str
) -> llm_pb2.GenerateTextResponse:
    """One message of a stream; the fields of the last message are set where the delta has a finish reason."""
    response = llm_pb2.GenerateTextResponse(generated_text=delta.text, index=delta.index, sequence=sequence)
    for token in delta.tokens:
        response.tokens.add(id=token)
    if delta.finish_reason:
        response.finish_reason = _FINISH_REASONS[delta.finish_reason]
        response.usage.prompt_tokens = delta.prompt_tokens
        response.usage.completion_tokens = delta.completion_tokens
        response.usage.cached_tokens = delta.cached_tokens
        response.seed = params.seed
        response.model = name
        if delta.stop_string is not None:
            response.stop_string = delta.stop_string
        if delta.stop_token_id is not None:
            response.stop_token_id = delta.stop_token_id
    return response
