"""GenerateText and StreamGenerateText, as computations that calls may share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from llm_grpc.server.calls import Call
from llm_grpc.server.constraints import to_constraint
from llm_grpc.server.fields import beside_if_large
from llm_grpc.server.models import Models
from llm_grpc.server.requests import to_text_request
from llm_grpc.server.responses import to_answer, to_response
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.text_request import TextRequest
from llm_grpc.v1.llm_pb2 import GenerateTextRequest, GenerateTextResponse


async def whole_text(
    request: GenerateTextRequest, models: Models, call: Call
) -> AsyncGenerator[GenerateTextResponse, None]:
    """The one answer of GenerateText: the stream's deltas joined."""
    model = models.get(request.model)
    yield await text_of(request, await asked_of(request, model, call), model)


async def asked_of(request: GenerateTextRequest, model: ServedModel, call: Call) -> TextRequest:
    """What ``request`` asks of the generator, checked, and its constraint compiled."""
    asked = call.asked(await beside_if_large(request, lambda: to_text_request(request, model)))
    constraint = await to_constraint(request, model)
    return replace(asked, constraint=constraint) if constraint else asked


async def text_of(
    request: GenerateTextRequest, asked: TextRequest, model: ServedModel, *, is_admitted: bool = False
) -> GenerateTextResponse:
    """The answer to ``request``, which says ``asked``. Who ``is_admitted`` holds its permits."""
    async with aclosing(model.generator.generate(asked, is_admitted=is_admitted)) as deltas:
        return to_answer([delta async for delta in deltas], request, model)


async def text_parts(
    request: GenerateTextRequest, models: Models, call: Call
) -> AsyncGenerator[GenerateTextResponse, None]:
    """The answers of StreamGenerateText: the text as it is generated."""
    model = models.get(request.model)
    asked = await asked_of(request, model, call)
    async with aclosing(model.generator.generate(asked)) as deltas:
        sequence = 0
        async for delta in deltas:
            yield to_response(delta, sequence, request, model)
            sequence += 1
