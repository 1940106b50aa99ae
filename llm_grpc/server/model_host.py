"""One model of a server, from its announcement to its end."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable

from llm_grpc.config import ModelSettings, ServerConfig
from llm_grpc.engine.adapters import Adapters, store_of
from llm_grpc.engine.async_engine import WORKER, AsyncEngine
from llm_grpc.engine.engine import Load
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.worker import Worker
from llm_grpc.manifest import check_digests, load_manifest, manifest_digest
from llm_grpc.metrics import Metrics, ModelMetrics
from llm_grpc.server.adapters import load_at_start
from llm_grpc.server.kv_cache import make_memory
from llm_grpc.server.loading import WarmRunner, context_tokens_of, warm_runner
from llm_grpc.server.runners import MakeRunner, runtime_of
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.admission import Admission
from llm_grpc.text.chat_template import load_chat_template
from llm_grpc.text.constraints import constraints_for
from llm_grpc.text.generator import TextGenerator
from llm_grpc.text.scorer import TextScorer
from llm_grpc.text.tokenizer import TextTokenizer
from llm_grpc.v1 import admin_pb2

log = logging.getLogger(__name__)


class State(enum.Enum):
    """Whether a model takes requests: FAILED where its last runs failed, or its thread is gone."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class ModelHost:
    """A model with an engine, a thread, a tokenizer and an admission bound of its own.

    ``served`` is None until ``load`` is done. ``on_health`` is called on the event loop when ``state`` or
    ``is_alive`` may have changed since then.

    Raises:
        StartupError: the model directory is none, or it is asked for more than the model takes.
    """

    def __init__(
        self,
        settings: ModelSettings,
        server: ServerConfig,
        metrics: Metrics,
        make_runner: MakeRunner,
        on_health: Callable[[], None],
    ) -> None:
        self._settings, self._server = settings, server
        self._manifest = load_manifest(settings.model.model)
        self._context_tokens = context_tokens_of(settings.engine, self._manifest)
        self._kv_tokens = settings.engine.max_running * self._context_tokens
        self._make_runner, self._on_health = make_runner, on_health
        self._engine: AsyncEngine | None = None
        self.name = settings.model.model_name or self._manifest.name
        self.served: ServedModel | None = None
        self.admission = Admission(settings.engine.max_running, settings.engine.max_waiting)
        self._metrics = ModelMetrics(metrics, self.name)
        self._metrics.requests_running.set_function(lambda: self.load_now().requests_running)
        self._metrics.requests_waiting.set_function(lambda: self.load_now().requests_waiting)
        self._metrics.kv_utilization.set_function(lambda: self.load_now().kv_utilization)
        self._metrics.read_preemptions(lambda: self._engine_load.num_preemptions)

    @property
    def state(self) -> State:
        """Whether it takes requests."""
        if self.served is None or self._engine is None:
            return State.LOADING
        return State.READY if self._engine.is_healthy else State.FAILED

    @property
    def is_alive(self) -> bool:
        """Whether its engine's thread is there, once it was."""
        return self._engine is None or self._engine.is_alive

    @property
    def promised_bytes(self) -> int:
        """Memory for keys and values that it may yet touch; 0 before it is loaded, and of a GPU."""
        if self.served is None or self._manifest.block_size:
            return 0
        return self._kv_tokens * self._manifest.kv_cache.token_bytes

    async def load(self, promised_bytes: int) -> None:
        """Load, warm up, and take requests. Other models have been promised ``promised_bytes``.

        What takes long is done in threads, for other models may be serving.

        Raises:
            StartupError: the model cannot be loaded.
        """
        (model, config), manifest = self._settings, self._manifest
        if model.verify_digest:
            await asyncio.to_thread(check_digests, model.model, manifest)
        tokenizer = await asyncio.to_thread(self._tokenizer)
        constraints = None
        if model.constraints:
            constraints = await asyncio.to_thread(constraints_for, tokenizer, manifest)
        worker = Worker(WORKER)  # recordings of a GPU are those of the thread that made them
        loading = worker.submit(
            lambda: warm_runner(self._settings, manifest, self._make_runner, promised_bytes)
        )
        try:
            warm = await asyncio.wrap_future(loading)
        except BaseException:
            worker.end()
            raise
        self._kv_tokens = warm.num_tokens
        context_tokens = min(self._context_tokens, warm.num_tokens)
        tokenizer.max_prompt_tokens = context_tokens - 1
        self._engine = self._start_engine(warm, context_tokens, worker)
        adapters = Adapters(store_of(warm.runner), self._engine.between_steps)
        await load_at_start(adapters, model.adapters)
        max_request_tokens = context_tokens if context_tokens < self._context_tokens else None
        self.served = ServedModel(
            name=self.name,
            manifest=manifest,
            digest=manifest_digest(model.model),
            context_tokens=context_tokens,
            max_message_bytes=self._server.max_message_bytes,
            prefix_reuse=config.prefix_reuse,
            defaults=model,
            generator=TextGenerator(
                tokenizer, self._engine, self.admission, self._metrics, max_request_tokens
            ),
            scorer=TextScorer(tokenizer, self._engine, self.admission, self._metrics),
            runtime=runtime_of(config, manifest),
            max_held=self.admission.limit,
            tokenizer=tokenizer,
            chat_template=load_chat_template(model.model, manifest),
            constraints=constraints,
            adapters=adapters,
        )
        log.info("the model %s is loaded", self.name)

    async def stop(self) -> None:
        """End the engine's thread; requests still running fail."""
        if self._engine:
            await self._engine.stop()

    def load_now(self) -> admin_pb2.ModelLoad:
        """How busy it is."""
        config, load = self._settings.engine, self._engine_load
        return admin_pb2.ModelLoad(
            name=self.name,
            requests_running=load.num_running,
            requests_waiting=max(0, self.admission.held - load.num_running),
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            kv_utilization=load.num_cached_tokens / self._kv_tokens,
            ready=self.state is State.READY,
        )

    @property
    def _engine_load(self) -> Load:
        return self._engine.load if self._engine else Load()

    def _tokenizer(self) -> TextTokenizer:
        path = self._settings.model.model / self._manifest.tokenizer
        tokenizer = TextTokenizer(path, self._context_tokens - 1)
        tokenizer.check_ids(self._manifest.vocabulary_size)
        return tokenizer

    def _start_engine(self, warm: WarmRunner, context_tokens: int, worker: Worker) -> AsyncEngine:
        config, manifest = self._settings.engine, self._manifest
        memory = make_memory(manifest, config.max_running, context_tokens, warm.num_tokens)
        scheduler = Scheduler(
            memory,
            context_tokens,
            config.chunk_tokens,
            manifest.eos_token_ids,
            warm.budget,
            ageing_s=config.priority_ageing_s,
            vocabulary_size=manifest.vocabulary_size,
        )
        loop = asyncio.get_running_loop()
        interval_s = self._server.stream_interval_ms / 1000
        engine = AsyncEngine(scheduler, warm.runner, loop, self._on_health, interval_s, worker)
        engine.start()
        return engine
