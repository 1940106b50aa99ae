"""The Python client: ``from llm_grpc.client import Client, AsyncClient``."""

from llm_grpc.client.async_client import AsyncClient
from llm_grpc.client.batches import BatchResult
from llm_grpc.client.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    LLMError,
    Unavailable,
)
from llm_grpc.client.requests import generate_request
from llm_grpc.client.streams import AsyncChatStream, AsyncTextStream, ChatStream, TextStream
from llm_grpc.client.sync_client import Client

__all__ = [
    "Client",
    "TextStream",
    "ChatStream",
    "AsyncClient",
    "AsyncTextStream",
    "BatchResult",
    "generate_request",
    "AsyncChatStream",
    "LLMError",
    "InvalidRequest",
    "Unavailable",
    "DeadlineExceeded",
    "FieldViolation",
]
