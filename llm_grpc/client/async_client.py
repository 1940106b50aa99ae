"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc

from llm_grpc.client.batches import BatchItem, BatchResult, batch_request, batch_result
from llm_grpc.client.calls import CallDefaults
from llm_grpc.client.channel import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    ChannelOptions,
    Metadata,
    channel_options,
)
from llm_grpc.client.chat import (
    ChatOptions,
    Message,
    TokenizeOptions,
    chat_request,
    detokenize_request,
    tokenize_request,
)
from llm_grpc.client.errors import translated
from llm_grpc.client.health import LLM_SERVICE, HealthStatus, health_check, health_request, health_status
from llm_grpc.client.options import GenerateOptions, Prompt
from llm_grpc.client.requests import generate_request
from llm_grpc.client.scoring import ScoreOptions, score_request
from llm_grpc.client.streams import AsyncChatStream, AsyncTextStream
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc


class AsyncClient:
    """``Client`` for asyncio: the same arguments, deadlines, retries and errors. It belongs to one loop."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        metadata: Metadata = (),
        options: ChannelOptions = (),
    ) -> None:
        opts = channel_options(options)
        if credentials:
            self._channel = grpc.aio.secure_channel(address, credentials, opts)
        else:
            self._channel = grpc.aio.insecure_channel(address, opts)
        self._llm = llm_pb2_grpc.LLMServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(self._channel)
        self._health = health_check(self._channel)
        self._call = CallDefaults(timeout_s, metadata)

    async def generate(
        self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> llm_pb2.GenerateTextResponse:
        """Return the whole answer to `prompt`, a text or token ids, and what ``GenerateOptions`` lists."""
        request = generate_request(prompt, options)
        with translated():
            return await self._llm.GenerateText(request, **self._call(timeout_s))

    def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream:
        """Return the answer as it is generated; leaving the iterator cancels the call."""
        request = generate_request(prompt, options)
        return AsyncTextStream(self._llm.StreamGenerateText(request, **self._call(timeout_s)))

    def generate_batch(
        self,
        items: Iterable[BatchItem],
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[BatchResult, None]:
        """Yield the results of many requests as they end; leaving the iterator cancels those that have not.

        An item is a prompt, which takes `options`, or a request message of its own. One that cannot be served
        has an ``LLMError`` as its result, and the others go on. The call begins with the iteration.
        """
        return self._results(batch_request(items, options), timeout_s)

    async def _results(
        self, request: llm_pb2.BatchGenerateTextRequest, timeout_s: float | None
    ) -> AsyncGenerator[BatchResult, None]:
        call = self._llm.BatchGenerateText(request, **self._call(timeout_s))
        with translated():
            try:
                async for message in call:
                    yield batch_result(message)
            finally:
                call.cancel()

    async def score(
        self,
        prompt: Prompt,
        candidates: Sequence[Prompt],
        *,
        timeout_s: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> llm_pb2.ScoreTextResponse:
        """Tell how likely the model finds each of `candidates`, texts or token ids, after `prompt`."""
        request = score_request(prompt, candidates, options)
        with translated():
            return await self._llm.ScoreText(request, **self._call(timeout_s))

    async def cancel(self, request_id: str, *, timeout_s: float | None = None) -> int:
        """End your requests of that id, each with what there is of its answer; return how many there were."""
        request = llm_pb2.CancelGenerationRequest(request_id=request_id)
        with translated():
            return (await self._llm.CancelGeneration(request, **self._call(timeout_s))).num_cancelled

    async def chat(
        self, messages: Sequence[Message], *, timeout_s: float | None = None, **options: Unpack[ChatOptions]
    ) -> llm_pb2.ChatResponse:
        """Return the model's whole message after `messages`, and what ``ChatOptions`` lists."""
        request = chat_request(messages, options)
        with translated():
            return await self._llm.Chat(request, **self._call(timeout_s))

    def stream_chat(
        self, messages: Sequence[Message], *, timeout_s: float | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncChatStream:
        """Return the message as it is generated; leaving the iterator cancels the call."""
        request = chat_request(messages, options)
        return AsyncChatStream(self._llm.StreamChat(request, **self._call(timeout_s)))

    async def tokenize(
        self,
        text: str | Sequence[Message],
        *,
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> tokenizer_pb2.TokenizeResponse:
        """Return the tokens of a text, or of the prompt that a conversation makes."""
        request = tokenize_request(text, options)
        with translated():
            return await self._tokenizer.Tokenize(request, **self._call(timeout_s))

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        keep_special_tokens: bool = False,
        model: str = "",
        timeout_s: float | None = None,
    ) -> str:
        """Return the text of tokens; special tokens have none, unless they are kept."""
        request = detokenize_request(token_ids, keep_special_tokens=keep_special_tokens, model=model)
        with translated():
            return (await self._tokenizer.Detokenize(request, **self._call(timeout_s))).text

    async def get_model(self, name: str = "", *, timeout_s: float | None = None) -> model_pb2.Model:
        """Describe a model: its limits and effective defaults. Empty is the server's default model."""
        request = model_pb2.GetModelRequest(name=name)
        with translated():
            return (await self._models.GetModel(request, **self._call(timeout_s))).model

    async def list_models(self, *, timeout_s: float | None = None) -> AsyncIterator[model_pb2.Model]:
        """Yield every model of the server, by name; those that are loading too. Each page has a deadline."""
        request = model_pb2.ListModelsRequest()
        while True:
            with translated():
                page = await self._models.ListModels(request, **self._call(timeout_s))
            for model in page.models:
                yield model
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_server_info(self, *, timeout_s: float | None = None) -> model_pb2.GetServerInfoResponse:
        """Tell which software answers, and which model is the default."""
        request = model_pb2.GetServerInfoRequest()
        with translated():
            return await self._models.GetServerInfo(request, **self._call(timeout_s))

    async def health(self, service: str = LLM_SERVICE, *, timeout_s: float | None = None) -> HealthStatus:
        """Return what the server says of `service` now: compare with "SERVING". Never retried."""
        request = health_request(service)
        with translated():
            return health_status(await self._health(request, **self._call(timeout_s)))

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
