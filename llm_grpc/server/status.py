"""The one table from domain errors to gRPC statuses with google.rpc details."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from llm_grpc import errors

DOMAIN = "llm-grpc"
"""ErrorInfo.domain of every error that this server makes."""

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata that gRPC's own retries obey; RetryInfo is for callers that retry by themselves."""

_CODES: dict[type[errors.RequestError], grpc.StatusCode] = {
    errors.MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidParameter: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PromptTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedParameter: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.AdapterNotFound: grpc.StatusCode.NOT_FOUND,
    errors.AdapterExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.EngineFailed: grpc.StatusCode.INTERNAL,
}


class Status(grpc.Status):
    """What ``ServicerContext.abort_with_status`` takes."""

    def __init__(
        self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str | bytes], ...]
    ) -> None:
        self.code = code
        self.details = details
        self.trailing_metadata = metadata


def status_of(error: errors.RequestError) -> Status:
    """The status of one error as a call ends with it."""
    rich = rich_status(error)
    metadata: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, rich.SerializeToString()),)
    if error.retry_after_s is not None:
        metadata += ((PUSHBACK_KEY, str(round(error.retry_after_s * 1000))),)
    return Status(_CODES[type(error)], rich.message, metadata)


def rich_status(error: errors.RequestError) -> status_pb2.Status:
    """The status of one error as a message: code, message, and the details that its fields fill."""
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN), *_more_details(error)]
    return status_pb2.Status(
        code=_CODES[type(error)].value[0], message=str(error), details=[_packed(d) for d in details]
    )


def internal_error() -> Status:
    """The status of an exception that nobody expected: it says nothing about the inside."""
    return Status(grpc.StatusCode.INTERNAL, internal_status().message, ())


def internal_status() -> status_pb2.Status:
    """The same as a message."""
    code = grpc.StatusCode.INTERNAL.value[0]
    return status_pb2.Status(code=code, message="internal error; the server's log has the cause")


def _more_details(error: errors.RequestError) -> list[Message]:
    details: list[Message] = []
    if isinstance(error, errors.InvalidParameter):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.problem)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
