"""The engine's thread, seen from the event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from functools import partial

from llm_grpc.engine.adapters import Adapter
from llm_grpc.engine.constraint import TokenConstraint
from llm_grpc.engine.engine import Abort, Call, Engine, Load, Stop
from llm_grpc.engine.mailbox import Mailbox
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.request import Event, FailedEvent, Request, TokenEvent
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.worker import Worker
from llm_grpc.errors import EngineFailed
from llm_grpc.sampling_params import SamplingParams

log = logging.getLogger(__name__)

WORKER = "llm-grpc-engine"
"""The thread's name."""


class AsyncEngine:
    """Hands requests to the engine thread through its inbox and gets a step's events back in one wake-up.

    Everything but the thread itself lives on the event loop ``loop``. ``on_health`` is called on the loop
    when ``is_healthy`` or ``is_alive`` may have changed. Two hand-overs to one reader are at least
    ``interval_s`` apart, but for the last. The thread is ``worker``'s, which ends with the engine. ``clock``
    says when requests come, in seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        loop: asyncio.AbstractEventLoop,
        on_health: Callable[[], None] = lambda: None,
        interval_s: float = 0.0,
        worker: Worker | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = Engine(scheduler, runner, self._publish)
        self._loop = loop
        self._on_health = on_health
        self._clock = clock
        self._ids = itertools.count(1)
        self._groups = itertools.count(1)
        self._interval_s = interval_s
        self._inboxes: dict[int, Mailbox] = {}
        self._calls: set[Future[None]] = set()
        self._was_healthy = True
        self._ended = False
        self._started = False
        self._worker = worker or Worker(WORKER)

    @property
    def load(self) -> Load:
        """How busy the engine was after its last step."""
        return self._engine.load

    @property
    def is_healthy(self) -> bool:
        """Whether runs succeed."""
        return self._engine.is_healthy and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether the step loop is there."""
        return self._started and self._worker.is_alive and not self._ended

    def start(self) -> None:
        """Let the engine thread begin."""
        self._started = True
        self._worker.submit(self._run)
        self._worker.end()

    async def stop(self) -> None:
        """End the engine thread, also one that never began; requests still running get EngineFailed."""
        self._engine.inbox.put(Stop())
        self._worker.end()
        await asyncio.to_thread(self._worker.join)

    def new_group(self) -> int:
        """A number that no group of requests had before."""
        return next(self._groups)

    async def between_steps(self, function: Callable[[], None]) -> None:
        """Have the engine's thread call ``function`` before its next step, and wait for that.

        Raises:
            EngineFailed: the step loop is gone.
            Exception: what ``function`` raised.
        """
        if not self.is_alive:
            raise EngineFailed("the engine is not running")
        called: Future[None] = Future()
        waiting = asyncio.wrap_future(called)
        self._calls.add(called)
        called.add_done_callback(self._calls.discard)
        self._engine.inbox.put(Call(partial(_call, function, called)))
        await waiting

    async def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        constraint: TokenConstraint | None = None,
        group: int = 0,
        first_score: int | None = None,
        priority: int = 0,
        adapter: Adapter | None = None,
    ) -> AsyncGenerator[list[TokenEvent], None]:
        """Yield the request's tokens, as many as have come since the last time, at least one.

        ``Request`` says what ``constraint``, ``group``, ``first_score`` and ``priority`` mean. Closing the
        iterator early frees the request's slot at the next step.

        Raises:
            AdapterNotFound: the adapter was taken away before this began.
            EngineFailed: a run failed, or the constraint, or the step loop is gone.
        """
        if not self.is_alive:
            raise EngineFailed("the engine is not running")
        number = adapter.take() if adapter else 0
        request_id = next(self._ids)
        request = Request(
            request_id,
            prompt_ids,
            params,
            constraint=constraint,
            group=group,
            first_score=first_score,
            priority=priority,
            arrived_s=self._clock(),
            adapter=number,
        )
        mailbox = self._inboxes[request_id] = Mailbox(self._loop, self._interval_s)
        self._engine.inbox.put(request)
        ended = False
        try:
            while not ended:
                events = await mailbox.take()
                ended = events[-1].finish_reason is not None
                yield events
        except EngineFailed:
            ended = True
            raise
        finally:
            del self._inboxes[request_id]
            if not ended:
                self._engine.inbox.put(Abort(request_id))
            if adapter:
                adapter.give_back()

    def _run(self) -> None:
        try:
            self._engine.run_until_stopped()
        except BaseException:
            log.exception("the step loop broke")
            raise
        finally:
            try:
                self._engine.fail_all()
            finally:
                self._loop.call_soon_threadsafe(self._end)

    def _publish(self, events: Sequence[Event]) -> None:
        """Engine thread: one wake-up of the loop for all the events of a step."""
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _end(self) -> None:
        """The step loop is gone: fail what it left, and what came after it last looked at its inbox."""
        self._ended = True
        for request_id, mailbox in self._inboxes.items():
            mailbox.put(FailedEvent(request_id))
        for called in list(self._calls):
            called.set_exception(EngineFailed("the engine is not running"))
        self._on_health()

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            if mailbox := self._inboxes.get(event.request_id):
                mailbox.put(event)
        if self._was_healthy is not self.is_healthy:
            self._was_healthy = self.is_healthy
            self._on_health()


def _call(function: Callable[[], None], called: Future[None]) -> None:
    """Engine thread: what comes of ``function`` is whose it is that waits for ``called``, if anybody does."""
    if not called.set_running_or_notify_cancel():
        return
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whoever asked gets it
        called.set_exception(error)
    else:
        called.set_result(None)
