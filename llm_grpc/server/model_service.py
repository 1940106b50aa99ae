"""``llm_grpc.v1.ModelService``."""

from __future__ import annotations

from typing import Any

from llm_grpc.server.convert import to_model
from llm_grpc.server.models import Models
from llm_grpc.v1 import model_pb2, model_pb2_grpc


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Read-only facts about the models."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        """Describe one model."""
        return model_pb2.GetModelResponse(model=to_model(self._models.get(request.name)))
