"""The generation services: convert, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

import grpc

from llm_grpc.original import llm_service_pb2, llm_service_pb2_grpc
from llm_grpc.server.batch import batch_answers
from llm_grpc.server.calls import Calls, only
from llm_grpc.server.chat import chat_parts, whole_chat
from llm_grpc.server.fields import refuse_unknown_fields
from llm_grpc.server.generation import text_parts, whole_text
from llm_grpc.server.models import Models
from llm_grpc.server.scoring import scores
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response

Context: TypeAlias = "grpc.aio.ServicerContext[Request, Response]"


class LLMServicer(llm_pb2_grpc.LLMServiceServicer):
    """``llm_grpc.v1.LLMService``."""

    def __init__(self, models: Models, calls: Calls) -> None:
        self._models = models
        self._calls = calls

    async def GenerateText(self, request: Request, context: Context) -> Response:
        """The whole text."""
        compute = partial(whole_text, request, self._models)
        return await only(self._calls.answers("GenerateText", request, compute))

    async def StreamGenerateText(self, request: Request, context: Context) -> AsyncIterator[Response]:
        """The text as it is generated."""
        compute = partial(text_parts, request, self._models)
        async with aclosing(self._calls.answers("StreamGenerateText", request, compute)) as responses:
            async for response in responses:
                yield response

    async def Chat(self, request: llm_pb2.ChatRequest, context: Any) -> llm_pb2.ChatResponse:
        """The whole message."""
        compute = partial(whole_chat, request, self._models)
        return await only(self._calls.answers("Chat", request, compute))

    async def StreamChat(
        self, request: llm_pb2.ChatRequest, context: Any
    ) -> AsyncIterator[llm_pb2.ChatResponse]:
        """The message as it is generated."""
        compute = partial(chat_parts, request, self._models)
        async with aclosing(self._calls.answers("StreamChat", request, compute)) as parts:
            async for part in parts:
                yield part

    async def BatchGenerateText(
        self, request: llm_pb2.BatchGenerateTextRequest, context: Any
    ) -> AsyncIterator[llm_pb2.BatchGenerateTextResponse]:
        """What becomes of each item, as they end."""
        async with aclosing(batch_answers(request, self._models, self._calls)) as responses:
            async for response in responses:
                yield response

    async def ScoreText(self, request: llm_pb2.ScoreTextRequest, context: Any) -> llm_pb2.ScoreTextResponse:
        """How likely each candidate is."""
        compute = partial(scores, request, self._models)
        return await only(self._calls.answers("ScoreText", request, compute))

    async def CancelGeneration(
        self, request: llm_pb2.CancelGenerationRequest, context: Any
    ) -> llm_pb2.CancelGenerationResponse:
        """End the caller's requests of that id."""
        refuse_unknown_fields(request)
        return llm_pb2.CancelGenerationResponse(num_cancelled=self._calls.cancel(request.request_id))


class OriginalServicer(llm_service_pb2_grpc.LLMServiceServicer):
    """The package-less ``LLMService``: the same path, a response of one field."""

    def __init__(self, servicer: LLMServicer) -> None:
        self._servicer = servicer

    async def GenerateText(
        self, request: llm_service_pb2.TextGenerationRequest, context: Context
    ) -> llm_service_pb2.TextGenerationResponse:
        """The whole text."""
        asked = Request(prompt=request.prompt, max_tokens=request.max_tokens, temperature=request.temperature)
        answer = await self._servicer.GenerateText(asked, context)
        return llm_service_pb2.TextGenerationResponse(generated_text=answer.generated_text)
