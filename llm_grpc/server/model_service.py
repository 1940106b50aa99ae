"""``llm_grpc.v1.ModelService``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_grpc.errors import UnsupportedParameter
from llm_grpc.server.descriptions import to_model
from llm_grpc.server.identity import Identity, current_identity
from llm_grpc.server.models import Models
from llm_grpc.v1 import model_pb2, model_pb2_grpc


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Read-only facts about the models."""

    def __init__(self, models: Models, priority_cap: Callable[[Identity], int]) -> None:
        self._models = models
        self._priority_cap = priority_cap

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        """Describe one model."""
        model, max_priority = self._models.get(request.name), self._priority_cap(current_identity.get())
        return model_pb2.GetModelResponse(model=to_model(model, max_priority))

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Any
    ) -> model_pb2.ListModelsResponse:
        """Describe all models."""
        raise UnsupportedParameter("ListModels: this version does not serve it")

    async def GetServerInfo(
        self, request: model_pb2.GetServerInfoRequest, context: Any
    ) -> model_pb2.GetServerInfoResponse:
        """Tell which software answers."""
        raise UnsupportedParameter("GetServerInfo: this version does not serve it")
