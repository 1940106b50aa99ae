"""Addresses: where the gRPC servers and the metrics endpoint listen."""

from __future__ import annotations

import socket

import grpc
from prometheus_client import start_http_server

from llm_grpc.errors import StartupError
from llm_grpc.metrics import Metrics


def bind(server: grpc.aio.Server, address: str) -> str:
    """Let ``server`` listen on ``address`` and return the address with the port that was bound.

    Raises:
        StartupError: the address is malformed or taken.
    """
    host, port = _split(address)
    _check_free(host, port, address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from None
    return f"{host}:{port}"


class MetricsListener:
    """The HTTP endpoint that Prometheus scrapes, on a thread of its own."""

    def __init__(self, metrics: Metrics, address: str) -> None:
        host, port = _split(address)
        try:
            self._server, self._thread = start_http_server(port, host.strip("[]"), metrics.registry)
        except OSError as error:
            raise StartupError(f"cannot listen on {address} for metrics: {error.strerror}") from None
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _check_free(host: str, port: int, address: str) -> None:
    """Try the address: gRPC names no cause where it cannot listen, and its core logs a line of its own."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, where = found[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise StartupError(f"the address {address!r} is not HOST:PORT with a port of 0 to 65535")
    return host, int(port)
