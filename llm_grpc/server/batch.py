"""BatchGenerateText: each item goes the way of GenerateText, and waits where that would be refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

from google.protobuf.message import Message

from llm_grpc.config import MAX_BATCH_ITEMS
from llm_grpc.errors import Cancelled, InvalidParameter, RequestError
from llm_grpc.server.calls import Call, Calls, only
from llm_grpc.server.fields import refuse_own_unknown_fields
from llm_grpc.server.generation import asked_of, text_of
from llm_grpc.server.models import Models
from llm_grpc.server.served_model import ServedModel
from llm_grpc.server.status import internal_status, rich_status
from llm_grpc.text.text_request import TextRequest
from llm_grpc.v1.llm_pb2 import (
    BatchGenerateTextRequest,
    BatchGenerateTextResponse,
    GenerateTextRequest,
    GenerateTextResponse,
    Status,
)

log = logging.getLogger(__name__)


async def batch_answers(
    request: BatchGenerateTextRequest, models: Models, calls: Calls
) -> AsyncGenerator[BatchGenerateTextResponse, None]:
    """What became of each item, as they end. Closing the iterator frees all of them.

    Raises:
        InvalidParameter: there is no item, or there are too many.
        UnsupportedParameter: the batch itself has a field that this version does not know.
        Draining: the server takes no more calls.
    """
    refuse_own_unknown_fields(request)
    models.refuse_if_draining()
    num_items = len(request.requests)
    if not 1 <= num_items <= MAX_BATCH_ITEMS:
        raise InvalidParameter("requests", f"has {num_items} entries, and must have 1 to {MAX_BATCH_ITEMS}")
    batch = _Batch(models, calls)
    items = [asyncio.create_task(batch.item(*item)) for item in enumerate(request.requests)]
    try:
        for ended in asyncio.as_completed(items):
            yield await ended
    finally:
        for item in items:
            item.cancel()
        await asyncio.gather(*items, return_exceptions=True)


class _Batch:
    """The items of one call. Of each model twice as many are under way as run at once, so that whoever ends
    finds the next one waiting, and another caller waits for few of them.
    """

    def __init__(self, models: Models, calls: Calls) -> None:
        self._models, self._calls = models, calls
        self._under_way: dict[str, asyncio.Semaphore] = {}

    async def item(self, place: int, request: GenerateTextRequest) -> BatchGenerateTextResponse:
        """What became of one item: its answer, or the status that GenerateText would end with."""
        try:
            answers = self._calls.answers("GenerateText", request, partial(self._answer, request))
            return BatchGenerateTextResponse(item=place, response=await only(answers))
        except RequestError as error:
            return BatchGenerateTextResponse(item=place, status=_status(rich_status(error)))
        except Exception:
            log.exception("item %d of a batch failed", place)
            return BatchGenerateTextResponse(item=place, status=_status(internal_status()))

    async def _answer(
        self, request: GenerateTextRequest, call: Call
    ) -> AsyncGenerator[GenerateTextResponse, None]:
        model = self._models.get(request.model)
        asked = await asked_of(request, model, call)
        async with self._turn(model, asked):
            self._models.refuse_if_draining()  # it may have begun meanwhile
            yield await text_of(request, asked, model, is_admitted=True)

    @asynccontextmanager
    async def _turn(self, model: ServedModel, asked: TextRequest) -> AsyncIterator[None]:
        """Hold the item's permits, waited for as long as the call lives.

        One that is cancelled goes on without: its answer is computed without the engine.
        """
        admission = model.generator.admission
        under_way = self._under_way.setdefault(model.name, asyncio.Semaphore(2 * admission.max_running))
        async with AsyncExitStack() as held:
            with suppress(Cancelled):
                async with AsyncExitStack() as waiting:
                    if asked.cancellation:
                        await waiting.enter_async_context(asked.cancellation.watched())
                    await held.enter_async_context(under_way)
                    await held.enter_async_context(admission.turn(asked.num_sequences))
            yield


def _status(status: Message) -> Status:
    """The contract's Status is google.rpc.Status, field by field."""
    return Status.FromString(status.SerializeToString())
