"""The server: every layer put together, started, drained."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from llm_grpc.config import EngineConfig, ModelConfig, ServerConfig
from llm_grpc.engine.adapters import Adapters, store_of
from llm_grpc.engine.async_engine import WORKER, AsyncEngine
from llm_grpc.engine.blocks import MAX_CHUNK_TOKENS
from llm_grpc.engine.engine import Load
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.warm_up import warm_up
from llm_grpc.engine.worker import Worker
from llm_grpc.errors import StartupError
from llm_grpc.manifest import Manifest, check_digests, load_manifest, manifest_digest
from llm_grpc.metrics import Metrics
from llm_grpc.server.adapters import load_at_start
from llm_grpc.server.health import Health
from llm_grpc.server.identity import AnonymousAuthenticator, Authenticator
from llm_grpc.server.interceptors import MetricsInterceptor, RequestInterceptor
from llm_grpc.server.kv_cache import blocks_that_fit, make_memory, slot_tokens
from llm_grpc.server.listeners import MetricsListener, bind
from llm_grpc.server.models import Models
from llm_grpc.server.planes import DATA_PLANE, admin_plane, data_plane
from llm_grpc.server.runners import MakeRunner, cache_bytes, runner_for
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.admission import Admission
from llm_grpc.text.generator import TextGenerator
from llm_grpc.text.tokenizer import TextTokenizer
from llm_grpc.v1 import admin_pb2

log = logging.getLogger(__name__)


class Server:
    """One process's server.

    ``start`` listens at once, with health saying NOT_SERVING, then loads the model. ``drain`` stops in order.
    ``broken`` is set when the engine's thread is gone.
    """

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        server: ServerConfig,
        *,
        authenticator: Authenticator | None = None,
        make_runner: MakeRunner = runner_for,
    ) -> None:
        self._model_config, self._engine_config, self._config = model, engine, server
        self._manifest = load_manifest(model.model)
        self._context_tokens = _context_tokens(engine, self._manifest)
        self._kv_tokens = engine.max_running * self._context_tokens
        self._make_runner = make_runner
        self._models = Models(model.model_name or self._manifest.name)
        self.admission = Admission(engine.max_running, engine.max_waiting)
        self._metrics = _metrics(self._load_now)
        self._metrics.preemptions.set_function(
            lambda: self._engine.load.num_preemptions if self._engine else 0
        )
        self._health = Health(DATA_PLANE, self._models.name)
        interceptors = (
            MetricsInterceptor(self._metrics),
            RequestInterceptor(authenticator or AnonymousAuthenticator()),
        )
        self._grpc = data_plane(self._models, self._health, server.max_message_bytes, interceptors)
        self._admin = admin_plane(self._load_now, self._models, server.max_message_bytes, interceptors)
        self._listener: MetricsListener | None = None
        self._engine: AsyncEngine | None = None
        self._draining = False
        self.broken = asyncio.Event()
        self.address = self.metrics_address = self.admin_address = ""

    async def start(self) -> None:
        """Listen, load, warm up, and say SERVING.

        Raises:
            StartupError: an address cannot be bound or the model cannot be loaded. Nothing listens any more.
        """
        try:
            self._listen()
            await self._health.set_ready(False)
            await self._health.set_live(True)
            await self._grpc.start()
            await self._admin.start()
            await self._load_model()
        except BaseException:
            await self.close()
            raise
        log.info("serving %s on %s", DATA_PLANE[0], self.address)

    async def drain(self) -> None:
        """Stop in order: not ready; a window in which calls are still taken; an end for those that run."""
        self._draining = True
        await self._update_health()
        if self._models.is_loaded:
            log.info("draining: calls are still taken for %g s", self._config.drain_window_s)
            await asyncio.sleep(self._config.drain_window_s)
        self._models.draining = True
        log.info("draining: %d requests get %g s to finish", self.admission.held, self._config.drain_limit_s)
        self._health.end_watches()
        await self._grpc.stop(self._config.drain_limit_s)
        await self.close()

    async def close(self) -> None:
        """Stop at once."""
        self._draining = True
        await self._grpc.stop(None)
        await self._admin.stop(None)
        if self._engine:
            await self._engine.stop()
        if self._listener:
            self._listener.close()

    def _listen(self) -> None:
        config = self._config
        if config.metrics_address:
            self._listener = MetricsListener(self._metrics, config.metrics_address)
            self.metrics_address = self._listener.address
            log.info("metrics on http://%s/metrics", self.metrics_address)
        self.address = bind(self._grpc, config.address)
        if config.admin_address:
            self.admin_address = bind(self._admin, config.admin_address)
            log.info("admin on %s", self.admin_address)

    async def _load_model(self) -> None:
        config, manifest = self._engine_config, self._manifest
        if self._model_config.verify_digest:
            await asyncio.to_thread(check_digests, self._model_config.model, manifest)
        tokenizer = TextTokenizer(self._model_config.model / manifest.tokenizer, self._context_tokens - 1)
        tokenizer.check_ids(manifest.vocabulary_size)
        worker = Worker(WORKER)  # recordings of a GPU are those of the thread that made them
        try:
            runner, budget, self._kv_tokens = await asyncio.wrap_future(worker.submit(self._warm_runner))
        except BaseException:
            worker.end()
            raise
        context_tokens = min(self._context_tokens, self._kv_tokens)
        tokenizer.max_prompt_tokens = context_tokens - 1
        memory = make_memory(manifest, config.max_running, context_tokens, self._kv_tokens)
        scheduler = Scheduler(memory, context_tokens, config.chunk_tokens, manifest.eos_token_ids, budget)
        loop = asyncio.get_running_loop()
        interval_s = self._config.stream_interval_ms / 1000
        self._engine = AsyncEngine(scheduler, runner, loop, self._on_engine_health, interval_s, worker)
        self._engine.start()
        adapters = Adapters(store_of(runner), self._engine.between_steps)
        await load_at_start(adapters, self._model_config.adapters)
        self._models.loaded(
            ServedModel(
                name=self._models.name,
                manifest=manifest,
                digest=manifest_digest(self._model_config.model),
                context_tokens=context_tokens,
                max_message_bytes=self._config.max_message_bytes,
                prefix_reuse=config.prefix_reuse,
                defaults=self._model_config,
                generator=TextGenerator(
                    tokenizer,
                    self._engine,
                    self.admission,
                    self._metrics,
                    context_tokens if context_tokens < self._context_tokens else None,
                ),
                adapters=adapters,
            )
        )
        await self._update_health()

    def _warm_runner(self) -> tuple[ModelRunner, StepBudget, int]:
        """The runner, what its steps may compute, and the tokens that its cache has memory for."""
        config, manifest = self._engine_config, self._manifest
        block_size, context_tokens = manifest.block_size, self._context_tokens
        num_blocks = 0
        if block_size:
            num_blocks = blocks_that_fit(manifest, config, context_tokens, cache_bytes(config, manifest))
            context_tokens = min(context_tokens, num_blocks * block_size)
        runner = self._make_runner(self._model_config, config, manifest, context_tokens, num_blocks)
        budget = warm_up(
            runner,
            config.max_running,
            min(config.chunk_tokens, context_tokens - 1),
            block_size=block_size,
            max_chunk_tokens=MAX_CHUNK_TOKENS if block_size else None,
            context_tokens=context_tokens,
        )
        mixed_tokens = config.mixed_chunk_tokens or budget.mixed_tokens
        budget = StepBudget(mixed_tokens, budget.num_guesses if config.prompt_lookup else 0)
        log.info(
            "a step takes %(mixed_tokens)d prompt tokens beside decoding requests, and checks "
            "%(num_guesses)d guesses",
            dataclasses.asdict(budget),
        )
        if block_size:
            return runner, budget, num_blocks * block_size
        return runner, budget, slot_tokens(manifest, config.kv_cache_memory, self._kv_tokens)

    def _on_engine_health(self) -> None:
        if self._engine and not self._engine.is_alive and not self._draining:
            self.broken.set()
        self._health_update = asyncio.ensure_future(self._update_health())

    async def _update_health(self) -> None:
        engine = self._engine
        await self._health.set_ready(engine is not None and engine.is_healthy and not self._draining)
        await self._health.set_live(engine is None or engine.is_alive)

    def _load_now(self) -> admin_pb2.GetLoadResponse:
        config, load = self._engine_config, self._engine.load if self._engine else Load()
        return admin_pb2.GetLoadResponse(
            requests_running=load.num_running,
            requests_waiting=max(0, self.admission.held - load.num_running),
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            kv_utilization=load.num_cached_tokens / self._kv_tokens,
            ready=self._health.is_ready,
            draining=self._draining,
        )


def _context_tokens(engine: EngineConfig, manifest: Manifest) -> int:
    asked = engine.max_context_tokens or manifest.context_tokens
    if not 2 <= asked <= manifest.context_tokens:
        limit = f"the model {manifest.name} takes 2 to {manifest.context_tokens}"
        raise StartupError(f"max_context_tokens is {asked}, and {limit}")
    return asked


def _metrics(load: Callable[[], admin_pb2.GetLoadResponse]) -> Metrics:
    metrics = Metrics()
    metrics.requests_running.set_function(lambda: load().requests_running)
    metrics.requests_waiting.set_function(lambda: load().requests_waiting)
    metrics.kv_utilization.set_function(lambda: load().kv_utilization)
    return metrics
