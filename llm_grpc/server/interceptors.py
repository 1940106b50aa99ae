"""What all RPCs share: counting, the caller's identity, and errors that become statuses.

An interceptor sees a method's handler once a call and may replace its parts. ``around`` puts a context
manager around the behaviour of a handler, unary or streaming alike.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from llm_grpc.errors import MalformedMessage, RequestError
from llm_grpc.metrics import Metrics
from llm_grpc.server.identity import Authenticator, current_identity
from llm_grpc.server.status import internal_error, status_of

log = logging.getLogger(__name__)

# The classes are generic in their stubs alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Any]]"
Around: TypeAlias = "Callable[[Any, Context], AbstractAsyncContextManager[None]]"

_TYPES = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}
"""``grpc_type`` as dashboards of the family know it, by request_streaming and response_streaming."""

_BEHAVIOURS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Counts and times every RPC under the names of the ``grpc_server_*`` family."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Wrap the handler; an unknown method has none."""
        handler: Handler | None = await continuation(details)
        return None if handler is None else around(handler, self._observed(handler, details.method))

    def _observed(self, handler: Handler, path: str) -> Around:
        _, service, method = path.split("/", 2)
        labels = (_TYPES[handler.request_streaming, handler.response_streaming], service, method)
        metrics = self._metrics

        @asynccontextmanager
        async def observed(_: Any, context: Context) -> AsyncIterator[None]:
            metrics.grpc_started.labels(*labels).inc()
            started, code = metrics.clock(), grpc.StatusCode.OK
            try:
                yield
            except BaseException as error:
                code = _code_of(error, context)
                raise
            finally:
                metrics.grpc_handled.labels(*labels, code.name).inc()
                metrics.grpc_handling.labels(*labels).observe(metrics.clock() - started)

        return observed


class RequestInterceptor(grpc.aio.ServerInterceptor):
    """Names the caller, and turns everything that is raised into a status with details."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Wrap the handler and its deserializer."""
        handler: Handler | None = await continuation(details)
        if handler is None:
            return None
        metadata = tuple(details.invocation_metadata)

        @asynccontextmanager
        async def guarded(request: Any, context: Context) -> AsyncIterator[None]:
            try:
                if isinstance(request, MalformedMessage):
                    raise request
                current_identity.set(await self._authenticator.authenticate(metadata, context.peer()))
                yield
            except RequestError as error:
                await context.abort_with_status(status_of(error))
            except grpc.aio.BaseError:  # aborted already, or a write found that the call is over
                raise
            except Exception:
                log.exception("%s failed", details.method)
                await context.abort_with_status(internal_error())

        return around(handler, guarded, _tolerant(handler.request_deserializer))


def around(handler: Handler, manager: Around, deserializer: Callable[[bytes], Any] | None = None) -> Handler:
    """``handler`` with ``manager(request, context)`` around its behaviour.

    A behaviour that yields becomes one that writes: however many managers there are, none of them is another
    generator that every message of a stream goes through.
    """
    kind = _BEHAVIOURS[handler.request_streaming, handler.response_streaming]
    inner = getattr(handler, kind)

    async def single(request: Any, context: Context) -> Any:
        async with manager(request, context):
            return await inner(request, context)

    async def written(request: Any, context: Context) -> None:
        async with manager(request, context), aclosing(inner(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped: Handler = make(
        written if inspect.isasyncgenfunction(inner) else single,
        deserializer or handler.request_deserializer,
        handler.response_serializer,
    )
    return wrapped


def _tolerant(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that returns what went wrong: one that raises would end the call with UNKNOWN."""
    if deserializer is None:
        return None

    def tolerant(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return MalformedMessage(
                f"the {len(data)} bytes do not parse as the method's request (or hold bad UTF-8)"
            )

    return tolerant


def _code_of(error: BaseException, context: Context) -> grpc.StatusCode:
    if isinstance(error, grpc.aio.AbortError):
        number: Any = context.code()  # the code's number, once the call was aborted
        return next(code for code in grpc.StatusCode if number in (code, code.value[0]))
    if isinstance(error, asyncio.CancelledError | grpc.aio.BaseError):  # left, or found gone
        remaining: float | None = context.time_remaining()  # None without a deadline, whatever the stubs say
        expired = remaining is not None and remaining <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN
