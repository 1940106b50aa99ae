"""The bound on calls of all models together (``max_workers``)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import grpc

from llm_grpc.server.interceptors import Context, Continuation, Handler, around
from llm_grpc.text.admission import Admission

_NEVER_REFUSED = "/llm_grpc.v1.LLMService/CancelGeneration"
"""Gives places back: it is for servers that are full."""


class CallLimit(grpc.aio.ServerInterceptor):
    """Serves at most ``max_calls`` calls of ``services`` at once. One more is refused as admission does it.

    It stands behind the interceptor that turns errors into statuses.
    """

    def __init__(self, max_calls: int, services: Collection[str]) -> None:
        self._services = frozenset(services)
        self._admission = Admission(max_calls, 0, held_are="calls are being served")

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Wrap the handler, unless it is of another service or gives places back."""
        handler: Handler | None = await continuation(details)
        service = details.method.split("/")[1]
        is_counted = service in self._services and details.method != _NEVER_REFUSED
        return around(handler, self._counted) if handler and is_counted else handler

    @asynccontextmanager
    async def _counted(self, _: Any, context: Context) -> AsyncIterator[None]:
        with self._admission.permit():
            yield
