"""From the project's own types to the contract's responses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llm_grpc import __version__
from llm_grpc.metrics import Timing
from llm_grpc.sampling_params import FinishReason
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.text_delta import PromptInfo, TextDelta, TextToken, joined
from llm_grpc.v1 import llm_pb2

_FINISH_REASONS = {
    FinishReason.EOS: llm_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: llm_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: llm_pb2.FINISH_REASON_LENGTH,
    FinishReason.CONTEXT_LIMIT: llm_pb2.FINISH_REASON_CONTEXT_LIMIT,
    FinishReason.CANCELLED: llm_pb2.FINISH_REASON_CANCELLED,
    FinishReason.TOOL_CALLS: llm_pb2.FINISH_REASON_TOOL_CALLS,
}

_MS = 1000


def to_answer(
    deltas: Sequence[TextDelta], request: llm_pb2.GenerateTextRequest, model: ServedModel
) -> llm_pb2.GenerateTextResponse:
    """The unary answer to ``request`` from all of its deltas."""
    answers = joined(deltas)
    response = to_response(answers[0], 0, request, model)
    if len(answers) > 1:
        response.sequences.extend(map(_to_sequence, answers))
    return response


def to_response(
    delta: TextDelta, sequence: int, request: llm_pb2.GenerateTextRequest, model: ServedModel
) -> llm_pb2.GenerateTextResponse:
    """One message of a stream; the fields of a last message are set where the delta has a finish reason."""
    response = llm_pb2.GenerateTextResponse(generated_text=delta.text, index=delta.index, sequence=sequence)
    if delta.tokens:
        response.tokens.extend(to_tokens(delta.tokens))
    if delta.prompt_info:
        response.prompt_info.CopyFrom(to_prompt_info(delta.prompt_info))
    if delta.finish_reason:
        _set_end(response, delta)
        response.request_id = request.request_id
        response.model = model.name
        if request.response_options.receipt:
            response.receipt.CopyFrom(to_receipt(model, delta))
    return response


def to_tokens(tokens: Iterable[TextToken]) -> list[llm_pb2.Token]:
    """Tokens with what is told of each."""
    return [
        llm_pb2.Token(
            id=token.id,
            logprob=token.logprob,
            top_logprobs=[
                llm_pb2.TopLogprob(id=top.id, logprob=top.logprob, text=top.text) for top in token.top
            ],
            text=token.text,
            text_offset=token.text_offset,
        )
        for token in tokens
    ]


def to_prompt_info(info: PromptInfo) -> llm_pb2.PromptInfo:
    """What is told of the prompt."""
    return llm_pb2.PromptInfo(
        text=info.text, tokens=to_tokens(info.tokens), truncated_tokens=info.truncated_tokens
    )


def to_receipt(model: ServedModel, last: TextDelta) -> llm_pb2.Receipt:
    """What computed an answer of ``model`` that ended with ``last``."""
    return llm_pb2.Receipt(
        model_digest=model.digest,
        runtime=model.runtime.version,
        provider=model.runtime.provider,
        weights=model.manifest.weights,
        lowering=model.manifest.lowering,
        seed=last.seed,
        adapter_digest=last.adapter_digest,
        version=__version__,
    )


def to_timing(timing: Timing) -> llm_pb2.Timing:
    """Times in milliseconds."""
    return llm_pb2.Timing(
        queue_ms=timing.queue_s * _MS,
        prefill_ms=timing.prefill_s * _MS,
        time_to_first_token_ms=(timing.queue_s + timing.prefill_s) * _MS,
        decode_ms=timing.decode_s * _MS,
    )


def _to_sequence(delta: TextDelta) -> llm_pb2.GeneratedSequence:
    sequence = llm_pb2.GeneratedSequence(
        generated_text=delta.text, index=delta.index, tokens=to_tokens(delta.tokens)
    )
    _set_end(sequence, delta)
    return sequence


def _set_end(message: llm_pb2.GenerateTextResponse | llm_pb2.GeneratedSequence, delta: TextDelta) -> None:
    """Set what the last message of a sequence and the whole of it have alike."""
    if delta.finish_reason is None:
        raise ValueError(f"this is a bug: sequence {delta.index} has no end")
    message.finish_reason = _FINISH_REASONS[delta.finish_reason]
    message.usage.prompt_tokens = delta.prompt_tokens
    message.usage.completion_tokens = delta.completion_tokens
    message.usage.cached_tokens = delta.cached_tokens
    message.seed = delta.seed
    if delta.stop_string is not None:
        message.stop_string = delta.stop_string
    if delta.stop_token_id is not None:
        message.stop_token_id = delta.stop_token_id
    if delta.timing:
        message.timing.CopyFrom(to_timing(delta.timing))
