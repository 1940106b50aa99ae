"""``grpc.health.v1`` with the names of the health contract.

======================  ====================================================================
``model/<name>``        the model is ready for traffic: NOT_SERVING while it loads, while its
                        engine fails, and from the first moment of a drain
``""``, each service    all models are
``live``                the process and the step loops of its models are there
======================  ====================================================================

All, because Kubernetes sends traffic to a server and not to a model: one that is behind a Service answers
requests to every one of its models. Who routes by model asks for ``model/<name>``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

LIVE = "live"

_STATUS = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class Health:
    """Says what is ready. Watchers are told of changes alone."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._server_names = ("", *services)
        self._servicer = _EndableHealthServicer()
        self._said: dict[str, bool] = {}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve the health service on ``server``."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    @property
    def is_ready(self) -> bool:
        """What was said last for the data plane."""
        return self._said.get("", False)

    async def set_ready(self, models: Mapping[str, bool]) -> None:
        """Say of each model, by its name, whether it takes traffic."""
        for name, ready in models.items():
            await self._set(f"model/{name}", ready)
        for name in self._server_names:
            await self._set(name, all(models.values()))

    async def set_live(self, live: bool) -> None:
        """Say whether the process works."""
        await self._set(LIVE, live)

    def end_watches(self) -> None:
        """End every Watch with OK: they have no end of their own, and a drain waits for every call."""
        self._servicer.ended.set()

    async def _set(self, name: str, value: bool) -> None:
        if self._said.get(name) is not value:
            self._said[name] = value
            await self._servicer.set(name, _STATUS[value])


class _EndableHealthServicer(health.aio.HealthServicer):
    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        watch = asyncio.ensure_future(super().Watch(request, context))
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait((watch, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            ended.cancel()
