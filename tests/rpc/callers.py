"""Callers that are told apart, what they ask, and how an answer is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from llm_grpc.server.identity import ANONYMOUS, Identity, Metadata
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response

_T = TypeVar("_T")

TIMEOUT_S = 30.0
FRESH = llm_pb2.Cache(disabled=True)


class CallersByName:
    """Believes who says ``caller: name``."""

    async def authenticate(self, metadata: Metadata, peer: str) -> Identity:
        """Who it says it is."""
        name = dict(metadata).get("caller")
        return Identity(str(name)) if name else ANONYMOUS


def ask(prompt: str, max_tokens: int = 5, **fields: Any) -> Request:
    """A request that uses nothing of the cache, so that an answer is the same whenever it is computed."""
    return Request(prompt=prompt, max_tokens=max_tokens, cache=FRESH, **fields)


async def answer(stub: llm_pb2_grpc.LLMServiceAsyncStub, request: Request, caller: str = "") -> Response:
    """The answer of GenerateText."""
    return await stub.GenerateText(request, timeout=TIMEOUT_S, metadata=named(caller))


async def streamed(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, request: Request, caller: str = ""
) -> list[Response]:
    """The messages of StreamGenerateText."""
    call = stub.StreamGenerateText(request, timeout=TIMEOUT_S, metadata=named(caller))
    return [message async for message in call]


async def cancelled(stub: llm_pb2_grpc.LLMServiceAsyncStub, request_id: str, caller: str = "") -> int:
    """How many requests CancelGeneration found."""
    request = llm_pb2.CancelGenerationRequest(request_id=request_id)
    reply = await stub.CancelGeneration(request, timeout=TIMEOUT_S, metadata=named(caller))
    return reply.num_cancelled


def named(caller: str) -> tuple[tuple[str, str], ...]:
    """Metadata that says who calls."""
    return (("caller", caller),) if caller else ()


def later(awaitable: Awaitable[_T]) -> asyncio.Future[_T]:
    """Begin now, be awaited later."""
    return asyncio.ensure_future(awaitable)
