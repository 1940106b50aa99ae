"""Adapters as operators see them: loaded by name at start and through AdminService."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from llm_grpc.adapter_names import ADAPTER_NAME, parse_adapters
from llm_grpc.engine.adapters import Adapter, Adapters
from llm_grpc.errors import InvalidParameter, ManifestError, RequestError, StartupError
from llm_grpc.v1 import admin_pb2

log = logging.getLogger(__name__)


async def load_at_start(adapters: Adapters, listed: str) -> None:
    """Load what the configuration lists.

    Raises:
        StartupError: one cannot be loaded.
    """
    for name, directory in parse_adapters(listed).items():
        try:
            await adapters.load(name, directory)
        except RequestError as error:
            raise StartupError(f"adapters: {error}") from error
        log.info("loaded the adapter %s from %s", name, directory)


async def load_adapter(adapters: Adapters, request: admin_pb2.LoadAdapterRequest) -> admin_pb2.Adapter:
    """Load what a request names; it is loaded although the caller leaves meanwhile.

    Raises:
        InvalidParameter: the name is none, or there is no adapter of this model at the path.
        AdapterExists: the name is taken.
        UnsupportedParameter: the model takes no adapters, or has no room for this one.
    """
    if not ADAPTER_NAME.fullmatch(request.name):
        raise InvalidParameter("name", f"is {request.name!r}, and must match {ADAPTER_NAME.pattern}")
    if not request.path or "\0" in request.path:
        raise InvalidParameter("path", "must be a directory on the server")
    loading = asyncio.ensure_future(adapters.load(request.name, Path(request.path)))
    try:
        found = to_adapter(await asyncio.shield(loading))
    except ManifestError as error:
        raise InvalidParameter("path", str(error)) from error
    log.info("loaded the adapter %s from %s", request.name, request.path)
    return found


def to_adapter(adapter: Adapter) -> admin_pb2.Adapter:
    """The description of one."""
    return admin_pb2.Adapter(
        name=adapter.name,
        rank=adapter.weights.rank,
        digest=adapter.weights.digest,
        num_requests=adapter.num_requests,
    )
