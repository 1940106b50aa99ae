"""The standard health check, as both clients make it."""

from __future__ import annotations

from typing import Any, Literal, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LLM_SERVICE = "llm_grpc.v1.LLMService"

HealthStatus = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]


def health_check(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """Return the method Check of `channel`'s server. The published types of the stub leave it out."""
    return health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]


def health_request(service: str) -> health_pb2.HealthCheckRequest:
    """Return the request that asks for `service`; empty is the server as a whole."""
    return health_pb2.HealthCheckRequest(service=service)


def health_status(response: health_pb2.HealthCheckResponse) -> HealthStatus:
    """Return the name of the status."""
    return cast("HealthStatus", health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
