"""The client's errors, one for each thing that a caller can do about it.

::

    LLMError                  any call that failed; nothing else is known to help
    ├── InvalidRequest        the request has to change: bad field, unknown model, missing feature
    ├── Unavailable           the same request may succeed later; the retries of the service config are spent
    └── DeadlineExceeded      the deadline passed, or the server knew that it could not be met
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from llm_grpc.v1 import llm_pb2


class FieldViolation(NamedTuple):
    """One field of the request that is out of its limits."""

    field: str
    description: str


class LLMError(Exception):
    """A call failed. The ``grpc.RpcError`` is its ``__cause__``.

    ``code`` and ``message`` are the gRPC status. ``reason`` is the server's ErrorInfo.reason ("QUEUE_FULL"),
    empty where the transport and not the server refused the call. ``field_violations`` name the fields to
    change. ``retry_after_s`` is set where the server says when to come back.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str = "",
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message, reason, field_violations, retry_after_s)
        self.code = code
        self.message = message
        self.reason = reason
        self.field_violations = field_violations
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        name = f"{self.code.name} ({self.reason})" if self.reason else self.code.name
        return f"{name}: {self.message}" if self.message else name


class InvalidRequest(LLMError):
    """The request has to change."""


class Unavailable(LLMError):
    """The same request may succeed later."""


class DeadlineExceeded(LLMError):
    """The deadline passed or could not be met."""


_KINDS: dict[grpc.StatusCode, type[LLMError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: InvalidRequest,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


@contextmanager
def translated() -> Iterator[None]:
    """Turn a ``grpc.RpcError`` (that of grpc.aio is one too) into an ``LLMError``."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def from_rpc_error(error: Any) -> LLMError:
    """Decode the status and the google.rpc details of a ``grpc.RpcError`` or ``grpc.aio.AioRpcError``."""
    return _decoded(error.code(), error.details() or "", _details(error))


def from_status(status: llm_pb2.Status) -> LLMError:
    """Decode the error of one item of a batch."""
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    return _decoded(code, status.message, status.details)


def _decoded(code: grpc.StatusCode, message: str, details: Iterable[Any]) -> LLMError:
    reason, retry_after_s = "", None
    violations: tuple[FieldViolation, ...] = ()
    for detail in details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            reason = _unpack(detail, error_details_pb2.ErrorInfo()).reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = _unpack(detail, error_details_pb2.BadRequest())
            violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = _unpack(detail, error_details_pb2.RetryInfo()).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
    kind = _KINDS.get(code, LLMError)
    return kind(code, message, reason, violations, retry_after_s)


def _details(error: Any) -> list[Any]:
    """Return the packed details; none where a proxy rewrote the status and left them contradicting it."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        return []
    return list(status.details) if status else []


def _unpack(detail: Any, message: Any) -> Any:
    detail.Unpack(message)
    return message
