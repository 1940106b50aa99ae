"""Servers for the tests: in this process over a scripted runner, or as a process over the embedded model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from llm_grpc.config import EngineConfig, ModelConfig, ModelSettings, ServerConfig
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.server.app import Server
from llm_grpc.server.identity import Authenticator
from tests.rpc.models import write_model_dir
from tests.rpc.process import ServerProcess
from tests.unit.scripted_runner import HANG_S, ScriptedRunner

Serve = Callable[..., AbstractAsyncContextManager[tuple[Server, grpc.aio.Channel]]]


@pytest.fixture(scope="session")
def scripted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory for servers with a scripted runner."""
    return write_model_dir(tmp_path_factory.mktemp("scripted"))


@pytest.fixture
def serve(scripted_model: Path) -> Serve:
    """``async with serve(runner, engine={...}, server={...}) as (server, channel)``, in this process."""

    @asynccontextmanager
    async def serving(
        runner: ScriptedRunner,
        engine: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        authenticator: Authenticator | None = None,
        model: Path = scripted_model,
    ) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
        engine_config = EngineConfig(**{"max_running": 4, "max_waiting": 4, **(engine or {})})
        app = Server(
            [ModelSettings(ModelConfig(model=model), engine_config)],
            loopback(**{"metrics_address": "", **(server or {})}),
            authenticator=authenticator,
            make_runner=lambda *_: runner,
        )
        await app.start()
        try:
            async with grpc.aio.insecure_channel(app.address) as channel:
                yield app, channel
        finally:
            runner.open()
            await app.close()

    return serving


@asynccontextmanager
async def loading_server(model: Path) -> AsyncIterator[tuple[Server, asyncio.Future[None], threading.Event]]:
    """A server, its start under way, and the event that lets its model load; closed at the end."""
    may_load = threading.Event()

    def make_runner(*_: object) -> ModelRunner:
        assert may_load.wait(HANG_S)
        return ScriptedRunner()

    settings = ModelSettings(ModelConfig(model=model), EngineConfig())
    server = Server([settings], loopback(), make_runner=make_runner)
    starting = asyncio.ensure_future(server.start())
    try:
        yield server, starting, may_load
    finally:
        may_load.set()
        await server.close()


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(HANG_S):
        while not holds():  # noqa: ASYNC110 - what the server holds is its own, there is no event for it
            await asyncio.sleep(0)


def loopback(**overrides: Any) -> ServerConfig:
    """Free ports on loopback and no drain window."""
    ports = dict.fromkeys(("address", "metrics_address", "admin_address"), "127.0.0.1:0")
    return ServerConfig(**{**ports, "drain_window_s": 0.0, "drain_limit_s": 20.0, **overrides})


@pytest.fixture(scope="session")
def embedded() -> Iterator[ServerProcess]:
    """The embedded model, served by a process of its own."""
    with ServerProcess() as process:
        yield process
