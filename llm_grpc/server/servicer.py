"""The generation services: convert, call, convert."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from llm_grpc.errors import UnsupportedParameter
from llm_grpc.original import llm_service_pb2, llm_service_pb2_grpc
from llm_grpc.server.chat import joined_chat, stream_chat
from llm_grpc.server.models import Models
from llm_grpc.server.requests import to_text_request
from llm_grpc.server.responses import to_response
from llm_grpc.text.generator import joined
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response

Context: TypeAlias = "grpc.aio.ServicerContext[Request, Response]"


class LLMServicer(llm_pb2_grpc.LLMServiceServicer):
    """``llm_grpc.v1.LLMService``."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def GenerateText(self, request: Request, context: Context) -> Response:
        """The whole text: the stream's deltas joined."""
        model = self._models.get(request.model)
        asked = to_text_request(request, model)
        async with aclosing(model.generator.generate(asked)) as deltas:
            return to_response(joined([delta async for delta in deltas]), 0, asked.params, model.name)

    async def StreamGenerateText(self, request: Request, context: Context) -> AsyncIterator[Response]:
        """The text as it is generated."""
        model = self._models.get(request.model)
        asked = to_text_request(request, model)
        async with aclosing(model.generator.generate(asked)) as deltas:
            sequence = 0
            async for delta in deltas:
                yield to_response(delta, sequence, asked.params, model.name)
                sequence += 1

    async def Chat(self, request: llm_pb2.ChatRequest, context: Any) -> llm_pb2.ChatResponse:
        """The whole message: those of the stream joined."""
        async with aclosing(self.StreamChat(request, context)) as parts:
            return joined_chat([part async for part in parts], several=request.sampling.n > 1)

    async def StreamChat(
        self, request: llm_pb2.ChatRequest, context: Any
    ) -> AsyncGenerator[llm_pb2.ChatResponse, None]:
        """The message as it is generated."""
        async with aclosing(stream_chat(request, self._models.get(request.model))) as parts:
            async for part in parts:
                yield part

    async def BatchGenerateText(
        self, request: llm_pb2.BatchGenerateTextRequest, context: Any
    ) -> AsyncIterator[llm_pb2.BatchGenerateTextResponse]:
        """Not served yet."""
        raise UnsupportedParameter("BatchGenerateText: this version does not serve it")
        yield  # type: ignore[unreachable]

    async def ScoreText(self, request: llm_pb2.ScoreTextRequest, context: Any) -> llm_pb2.ScoreTextResponse:
        """Not served yet."""
        raise UnsupportedParameter("ScoreText: this version does not serve it")

    async def CancelGeneration(
        self, request: llm_pb2.CancelGenerationRequest, context: Any
    ) -> llm_pb2.CancelGenerationResponse:
        """Not served yet."""
        raise UnsupportedParameter("CancelGeneration: this version does not serve it")


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
