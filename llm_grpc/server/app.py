"""The server: every layer put together, started, drained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from llm_grpc import __version__
from llm_grpc.config import ModelSettings, ServerConfig
from llm_grpc.errors import StartupError
from llm_grpc.metrics import Metrics
from llm_grpc.server.call_limit import CallLimit
from llm_grpc.server.calls import Calls
from llm_grpc.server.descriptions import to_load
from llm_grpc.server.health import Health
from llm_grpc.server.identity import AnonymousAuthenticator, Authenticator
from llm_grpc.server.interceptors import MetricsInterceptor, RequestInterceptor
from llm_grpc.server.listeners import MetricsListener, bind
from llm_grpc.server.model_host import ModelHost, State
from llm_grpc.server.models import Models
from llm_grpc.server.planes import DATA_PLANE, Interceptors, admin_plane, data_plane
from llm_grpc.server.replays import Replays
from llm_grpc.server.runners import MakeRunner, runner_for, runtime_version
from llm_grpc.text.admission import Admission
from llm_grpc.v1 import admin_pb2, model_pb2

log = logging.getLogger(__name__)


class Server:
    """One process's server.

    ``start`` listens at once, with health saying NOT_SERVING, then loads the models. ``drain`` stops in
    order. ``broken`` is set when an engine's thread is gone.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        config: ServerConfig,
        *,
        authenticator: Authenticator | None = None,
        make_runner: MakeRunner = runner_for,
    ) -> None:
        self._config = config
        self._metrics = Metrics()
        self._hosts = [
            ModelHost(each, config, self._metrics, make_runner, self._on_engine_health) for each in models
        ]
        self._models = Models(self._hosts, config.default_model)
        self._health = Health(DATA_PLANE)
        shared: Interceptors = (
            MetricsInterceptor(self._metrics),
            RequestInterceptor(authenticator or AnonymousAuthenticator()),
        )
        limit = (CallLimit(config.max_workers, DATA_PLANE),) if config.max_workers else ()
        replays = Replays(config.dedupe_window_s, config.dedupe_memory)
        self.calls = Calls(replays, lambda _: config.max_priority)
        self._grpc = data_plane(
            self._models, self.calls, self._info(), self._health, config.max_message_bytes, (*shared, *limit)
        )
        self._admin = admin_plane(self._load_now, self._models, config.max_message_bytes, shared)
        self._listener: MetricsListener | None = None
        self._draining = False
        self._saying = asyncio.Lock()
        self.broken = asyncio.Event()
        self.address = self.metrics_address = self.admin_address = ""

    @property
    def admission(self) -> Admission:
        """The default model's."""
        return self._models.default.admission

    async def start(self) -> None:
        """Listen, load one model after the other, each ready from then on, and say SERVING.

        Cancelled, it listens still, and the models that were loaded are served: drain or close then.

        Raises:
            StartupError: an address cannot be bound or a model cannot be loaded. Nothing listens any more.
        """
        try:
            self._listen()
            await self._update_health()
            await self._grpc.start()
            await self._admin.start()
            await self._load_models()
        except Exception:
            await self.close()
            raise
        log.info("serving %s on %s", DATA_PLANE[0], self.address)

    async def drain(self) -> None:
        """Stop in order: not ready; a window in which calls are still taken; an end for those that run."""
        self._draining = True
        await self._update_health()
        if any(host.served for host in self._hosts):
            log.info("draining: calls are still taken for %g s", self._config.drain_window_s)
            await asyncio.sleep(self._config.drain_window_s)
        self._models.draining = True
        held = sum(host.admission.held for host in self._hosts)
        log.info("draining: %d requests get %g s to finish", held, self._config.drain_limit_s)
        self._health.end_watches()
        await self._grpc.stop(self._config.drain_limit_s)
        await self.close()

    async def close(self) -> None:
        """Stop at once."""
        self._draining = True
        await self._grpc.stop(None)
        await self._admin.stop(None)
        for host in self._hosts:
            await host.stop()
        if self._listener:
            self._listener.close()

    def _listen(self) -> None:
        config = self._config
        if config.metrics_address:
            self._listener = MetricsListener(self._metrics, config.metrics_address)
            self.metrics_address = self._listener.address
            log.info("metrics on http://%s/metrics", self.metrics_address)
        self.address = bind(self._grpc, config.data_address)
        if config.admin_address:
            self.admin_address = bind(self._admin, config.admin_address)
            log.info("admin on %s", self.admin_address)

    async def _load_models(self) -> None:
        hosts = self._hosts
        names = ", ".join(host.name for host in hosts)
        log.info("models: %s; requests without a name get %s", names, self._models.default.name)
        for host in hosts:
            try:
                await host.load(sum(other.promised_bytes for other in hosts))
            except StartupError as error:
                if len(hosts) == 1:
                    raise
                raise StartupError(f"the model {host.name}: {error}") from error
            await self._update_health()

    def _on_engine_health(self) -> None:
        if not self._draining and not self._is_live():
            self.broken.set()
        self._health_update = asyncio.ensure_future(self._update_health())

    def _is_live(self) -> bool:
        return all(host.is_alive for host in self._hosts)

    async def _update_health(self) -> None:
        """Say what is so now. One after the other: what was so before is not said after it."""
        async with self._saying:
            await self._health.set_ready(
                {host.name: host.state is State.READY and not self._draining for host in self._hosts}
            )
            await self._health.set_live(self._is_live())

    def _load_now(self) -> admin_pb2.GetLoadResponse:
        return to_load([host.load_now() for host in self._hosts], self._health.is_ready, self._draining)

    def _info(self) -> model_pb2.GetServerInfoResponse:
        started = Timestamp()
        started.GetCurrentTime()
        return model_pb2.GetServerInfoResponse(
            version=__version__,
            runtime=runtime_version(),
            default_model=self._models.default.name,
            start_time=started,
        )
