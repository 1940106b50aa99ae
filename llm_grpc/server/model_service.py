"""``llm_grpc.v1.ModelService``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_grpc.server import page_token
from llm_grpc.server.descriptions import to_model
from llm_grpc.server.fields import refuse_unknown_fields, whole_in_range
from llm_grpc.server.identity import Identity, current_identity
from llm_grpc.server.model_host import ModelHost
from llm_grpc.server.models import Models
from llm_grpc.v1 import model_pb2, model_pb2_grpc

MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Read-only facts about the models, and about the server: ``info``."""

    def __init__(
        self,
        models: Models,
        info: model_pb2.GetServerInfoResponse,
        priority_cap: Callable[[Identity], int],
    ) -> None:
        self._models, self._info, self._priority_cap = models, info, priority_cap

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        """Describe one model."""
        refuse_unknown_fields(request)
        host, _ = self._models.loaded(request.name)
        return model_pb2.GetModelResponse(model=self._described(host))

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Any
    ) -> model_pb2.ListModelsResponse:
        """Describe a page of models, by name."""
        refuse_unknown_fields(request)
        size = whole_in_range("page_size", request.page_size, 0, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE
        last = page_token.name_of(request.page_token) if request.page_token else ""
        rest = [host for host in self._models.by_name() if host.name > last]
        page = rest[:size]
        return model_pb2.ListModelsResponse(
            models=map(self._described, page),
            next_page_token=page_token.after(page[-1].name) if len(rest) > size else "",
        )

    async def GetServerInfo(
        self, request: model_pb2.GetServerInfoRequest, context: Any
    ) -> model_pb2.GetServerInfoResponse:
        """Tell which software answers."""
        refuse_unknown_fields(request)
        return self._info

    def _described(self, host: ModelHost) -> model_pb2.Model:
        cap = self._priority_cap(current_identity.get())
        return to_model(host, host is self._models.default, cap)
