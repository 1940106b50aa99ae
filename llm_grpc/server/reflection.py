"""Server reflection, v1 and v1alpha.

grpcio-reflection serves v1alpha alone. The two versions have the same messages in packages of other names, so
v1 is v1alpha's descriptor with the package renamed, and the same servicer behind it.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

V1 = "grpc.reflection.v1.ServerReflection"


def add_reflection(services: tuple[str, ...], server: grpc.aio.Server) -> None:
    """Let callers list and describe ``services`` and the reflection services themselves."""
    _add_v1_descriptor()
    names = (*services, V1, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(names, pool=_PoolWithMethods())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_registered_method_handlers(V1, {"ServerReflectionInfo": handler})


class _PoolWithMethods:
    """The default pool, which finds the file of a method too: the protocol asks for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(descriptor_pool.Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        pool = descriptor_pool.Default()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindMethodByName(symbol).containing_service.file


def _add_v1_descriptor() -> None:
    alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    text = json_format.MessageToJson(alpha)
    text = text.replace("grpc.reflection.v1alpha", "grpc.reflection.v1").replace("/v1alpha/", "/v1/")
    v1 = json_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().Add(v1)
