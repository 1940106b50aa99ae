"""``llm_grpc.v1.AdminService``, served on the admin address alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from llm_grpc.server.adapters import load_adapter, to_adapter
from llm_grpc.server.fields import refuse_unknown_fields
from llm_grpc.server.models import Models
from llm_grpc.v1 import admin_pb2, admin_pb2_grpc

log = logging.getLogger(__name__)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Takes the load from a function, so that it knows nothing of the server around it."""

    def __init__(self, load: Callable[[], admin_pb2.GetLoadResponse], models: Models) -> None:
        self._load = load
        self._models = models

    async def GetLoad(self, request: admin_pb2.GetLoadRequest, context: Any) -> admin_pb2.GetLoadResponse:
        """The load at this moment."""
        refuse_unknown_fields(request)
        return self._load()

    async def LoadAdapter(
        self, request: admin_pb2.LoadAdapterRequest, context: Any
    ) -> admin_pb2.LoadAdapterResponse:
        """Let requests name an adapter."""
        refuse_unknown_fields(request)
        adapters = self._models.get(request.model).adapters
        return admin_pb2.LoadAdapterResponse(adapter=await load_adapter(adapters, request))

    async def UnloadAdapter(
        self, request: admin_pb2.UnloadAdapterRequest, context: Any
    ) -> admin_pb2.UnloadAdapterResponse:
        """Let no new request name it."""
        refuse_unknown_fields(request)
        self._models.get(request.model).adapters.unload(request.name)
        log.info("unloaded the adapter %s", request.name)
        return admin_pb2.UnloadAdapterResponse()

    async def ListAdapters(
        self, request: admin_pb2.ListAdaptersRequest, context: Any
    ) -> admin_pb2.ListAdaptersResponse:
        """Those that requests may name."""
        refuse_unknown_fields(request)
        adapters = self._models.get(request.model).adapters
        return admin_pb2.ListAdaptersResponse(
            adapters=[to_adapter(adapter) for adapter in adapters.loaded], max_rank=adapters.max_rank
        )
