"""The errors of the project. None of them knows a transport; ``server.status`` maps them to gRPC.

::

    LLMGrpcError
    ├── StartupError              the server cannot start: one line says what to change
    │   └── ManifestError         the model directory is missing, damaged or of another version
    ├── ExportError               a model cannot be exported, or is not what torch computes
    ├── BenchError                a server cannot be measured as asked
    └── RequestError              one request cannot be served; ``reason`` is its ErrorInfo.reason
        ├── MalformedMessage      bytes that do not parse
        ├── InvalidParameter      one field is out of its limits
        │   └── PromptTooLong     the prompt does not fit the context
        ├── UnsupportedParameter  the model or this build lacks the feature
        ├── ModelNotFound         no model of that name
        ├── AdapterNotFound       the model has no adapter of that name
        ├── AdapterExists         the model has an adapter of that name already
        ├── QueueFull             the admission bound is reached
        ├── ModelNotReady         the model is loading
        ├── Draining              the server is stopping
        ├── Cancelled             CancelGeneration ended it, and it has no answer of its own for that
        └── EngineFailed          a run failed
"""

from __future__ import annotations

from typing import ClassVar


class LLMGrpcError(Exception):
    """Root of the tree."""


class StartupError(LLMGrpcError):
    """The server cannot start. The message is one line that names the cause and what to change."""


class ManifestError(StartupError):
    """A model directory cannot be used."""


class ExportError(LLMGrpcError):
    """A model cannot be exported. The message is one line that names the cause."""


class BenchError(LLMGrpcError):
    """A server cannot be measured as asked. The message is one line that names the cause."""


class RequestError(LLMGrpcError):
    """One request cannot be served. The message is meant for the caller.

    ``retry_after_s`` is set where the same request may succeed after that many seconds.
    """

    reason: ClassVar[str] = "INTERNAL"
    retry_after_s: float | None = None


class MalformedMessage(RequestError):
    """The bytes of a request do not parse as its message."""

    reason = "MALFORMED_MESSAGE"


class InvalidParameter(RequestError):
    """One field of a request is out of its limits.

    ``field`` is the path of the field in the request message; ``problem`` names the value and the limit.
    """

    reason = "INVALID_PARAMETER"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class PromptTooLong(InvalidParameter):
    """The prompt has more tokens than the model takes."""

    reason = "PROMPT_TOO_LONG"


class UnsupportedParameter(RequestError):
    """The model or this build cannot honour a field of the request."""

    reason = "UNSUPPORTED_PARAMETER"


class ModelNotFound(RequestError):
    """The server has no model of the requested name."""

    reason = "MODEL_NOT_FOUND"


class AdapterNotFound(RequestError):
    """The model has no adapter of the requested name."""

    reason = "ADAPTER_NOT_FOUND"


class AdapterExists(RequestError):
    """An adapter cannot be loaded under a name that another one has."""

    reason = "ADAPTER_EXISTS"


class QueueFull(RequestError):
    """As many requests run and wait as the server admits."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelNotReady(RequestError):
    """The model is still loading."""

    reason = "MODEL_NOT_READY"
    retry_after_s = 1.0


class Draining(RequestError):
    """The server is stopping and takes no new requests."""

    reason = "DRAINING"
    retry_after_s = 1.0


class Cancelled(RequestError):
    """The caller ended the request from outside."""

    reason = "CANCELLED"

    def __init__(self) -> None:
        super().__init__("CancelGeneration ended the request")


class EngineFailed(RequestError):
    """A run of the model failed. The cause is in the server's log, not in the message."""

    reason = "ENGINE_FAILED"
