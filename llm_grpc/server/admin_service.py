"""``llm_grpc.v1.AdminService``, served on the admin address alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_grpc.errors import UnsupportedParameter
from llm_grpc.server.fields import refuse_unknown_fields
from llm_grpc.v1 import admin_pb2, admin_pb2_grpc


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Takes the load from a function, so that it knows nothing of the server around it."""

    def __init__(self, load: Callable[[], admin_pb2.GetLoadResponse]) -> None:
        self._load = load

    async def GetLoad(self, request: admin_pb2.GetLoadRequest, context: Any) -> admin_pb2.GetLoadResponse:
        """The load at this moment."""
        refuse_unknown_fields(request)
        return self._load()

    async def LoadAdapter(
        self, request: admin_pb2.LoadAdapterRequest, context: Any
    ) -> admin_pb2.LoadAdapterResponse:
        """Not served yet."""
        raise UnsupportedParameter("LoadAdapter: this version does not serve it")

    async def UnloadAdapter(
        self, request: admin_pb2.UnloadAdapterRequest, context: Any
    ) -> admin_pb2.UnloadAdapterResponse:
        """Not served yet."""
        raise UnsupportedParameter("UnloadAdapter: this version does not serve it")

    async def ListAdapters(
        self, request: admin_pb2.ListAdaptersRequest, context: Any
    ) -> admin_pb2.ListAdaptersResponse:
        """Not served yet."""
        raise UnsupportedParameter("ListAdapters: this version does not serve it")
