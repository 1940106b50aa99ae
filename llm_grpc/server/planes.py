"""The services of each port, put onto gRPC servers."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from llm_grpc.original import llm_service_pb2_grpc
from llm_grpc.server.admin_service import AdminServicer
from llm_grpc.server.calls import Calls
from llm_grpc.server.health import Health
from llm_grpc.server.model_service import ModelServicer
from llm_grpc.server.models import Models
from llm_grpc.server.reflection import add_reflection
from llm_grpc.server.servicer import LLMServicer, OriginalServicer
from llm_grpc.server.tokenizer_service import TokenizerServicer
from llm_grpc.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    llm_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    tokenizer_pb2_grpc,
)

DATA_PLANE = (
    "llm_grpc.v1.LLMService",
    "llm_grpc.v1.ModelService",
    "llm_grpc.v1.TokenizerService",
    "LLMService",
)
"""The data plane's services, as reflection lists them and health names them."""

HEALTH_SERVICE = "grpc.health.v1.Health"
ADMIN_SERVICE = "llm_grpc.v1.AdminService"

Interceptors = tuple[grpc.aio.ServerInterceptor, ...]


def data_plane(
    models: Models,
    calls: Calls,
    info: model_pb2.GetServerInfoResponse,
    health: Health,
    max_message_bytes: int,
    interceptors: Interceptors,
) -> grpc.aio.Server:
    """What callers use: generation, models, tokens, health, reflection."""
    server = _server(max_message_bytes, interceptors)
    llm = LLMServicer(models, calls)
    llm_pb2_grpc.add_LLMServiceServicer_to_server(llm, server)
    llm_service_pb2_grpc.add_LLMServiceServicer_to_server(OriginalServicer(llm), server)
    describing = ModelServicer(models, info, calls.priority_cap)
    model_pb2_grpc.add_ModelServiceServicer_to_server(describing, server)
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(TokenizerServicer(models), server)
    health.add_to(server)
    add_reflection((*DATA_PLANE, HEALTH_SERVICE), server)
    return server


def admin_plane(
    load: Callable[[], admin_pb2.GetLoadResponse],
    models: Models,
    max_message_bytes: int,
    interceptors: Interceptors,
) -> grpc.aio.Server:
    """What operators use."""
    server = _server(max_message_bytes, interceptors)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(load, models), server)
    add_reflection((ADMIN_SERVICE,), server)
    return server


def _server(max_message_bytes: int, interceptors: Interceptors) -> grpc.aio.Server:
    options = (
        # Off, so that a second server on the same port is an error and not a silent sharer of its calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Clients may ping every 10 s while a call is silent; the default takes that for abuse and hangs up.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    )
    return grpc.aio.server(interceptors=interceptors, options=options)
