"""One request as an RPC: StreamGenerateText, its tokens counted as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from llm_grpc.bench.drive import RequestFailed
from llm_grpc.bench.entry import Entry, ModelLimits
from llm_grpc.client.channel import channel_options
from llm_grpc.client.errors import LLMError, translated
from llm_grpc.errors import BenchError
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc


def open_channel(address: str) -> grpc.aio.Channel:
    """Open the client's channel without its retries: a refusal is a result here, not something to hide."""
    return grpc.aio.insecure_channel(address, channel_options([("grpc.enable_retries", 0)]))


async def get_model(channel: grpc.aio.Channel, name: str, timeout_s: float) -> model_pb2.Model:
    """Ask what is served.

    Raises:
        BenchError: no answer, or no such model.
    """
    stub = model_pb2_grpc.ModelServiceStub(channel)
    try:
        with translated():
            request = model_pb2.GetModelRequest(name=name)
            return (await stub.GetModel(request, timeout=timeout_s)).model
    except LLMError as error:
        raise BenchError(f"the server does not tell of its model: {error}") from error


def limits_of(model: model_pb2.Model) -> ModelLimits:
    """Take from a model's description what bounds a workload."""
    limits = model.limits
    return ModelLimits(
        vocabulary_size=model.vocabulary_size,
        context_tokens=limits.context_tokens,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_tokens=limits.max_tokens,
    )


@dataclass(frozen=True)
class RpcSend:
    """Sends entries to one model over one channel.

    Generation is greedy and does not end at an end-of-sequence token: the work is what the workload says.
    ``salt`` keeps the cached prompts of a run to that run; without one the cache is not used at all.
    """

    channel: grpc.aio.Channel
    model: str
    timeout_s: float
    salt: str | None

    async def __call__(self, entry: Entry, on_tokens: Callable[[int], None]) -> int | None:
        """Stream one answer; raises RequestFailed unless it has as many tokens as were asked for."""
        num_tokens, last = 0, llm_pb2.GenerateTextResponse()
        try:
            with translated():
                stub = llm_pb2_grpc.LLMServiceStub(self.channel)
                async for message in stub.StreamGenerateText(self._request(entry), timeout=self.timeout_s):
                    on_tokens(len(message.tokens))
                    num_tokens += len(message.tokens)
                    last = message
        except LLMError as error:
            raise RequestFailed(f"{error.code.name} {error.reason}".rstrip()) from error
        if num_tokens != entry.output_tokens:
            reason = llm_pb2.FinishReason.Name(last.finish_reason)
            raise RequestFailed(f"ended early: {reason.removeprefix('FINISH_REASON_')}")
        return last.usage.cached_tokens

    def _request(self, entry: Entry) -> llm_pb2.GenerateTextRequest:
        cache = llm_pb2.Cache(disabled=True) if self.salt is None else llm_pb2.Cache(salt=self.salt)
        return llm_pb2.GenerateTextRequest(
            model=self.model,
            prompt_token_ids=entry.prompt,
            max_tokens=entry.output_tokens,
            sampling=llm_pb2.Sampling(temperature=0.0),
            stopping=llm_pb2.Stopping(ignore_eos=True),
            response_options=llm_pb2.ResponseOptions(tokens=True),
            cache=cache,
        )
