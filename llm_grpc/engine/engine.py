"""The step loop's body: take what came in, plan, run, commit, publish."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.engine.request import Event, Request
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.step_plan import StepPlan

log = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 2
"""This many failed runs without a good one between them make the engine unhealthy."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Marker: forget the request at the next step."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Marker: end the loop after what came before."""


@dataclass(frozen=True, slots=True)
class Call:
    """Do this before the next step."""

    function: Callable[[], None]


Command = Request | Abort | Call | Stop


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine was after its last step."""

    num_running: int = 0
    num_waiting: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0


class Engine:
    """Owned by one thread. Others put commands into ``inbox`` and read ``load``; nothing else is shared."""

    def __init__(
        self, scheduler: Scheduler, runner: ModelRunner, publish: Callable[[Sequence[Event]], None]
    ) -> None:
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.load = Load()
        self._scheduler = scheduler
        self._runner = runner
        self._publish = publish
        self._failures_in_a_row = 0
        self._stopped = False

    @property
    def is_healthy(self) -> bool:
        """False after too many failed runs in a row."""
        return self._failures_in_a_row < MAX_FAILURES_IN_A_ROW

    def run_until_stopped(self) -> None:
        """Step for as long as there is work, sleep on the inbox while there is none."""
        while not self._stopped:
            if not self.step() and not self._stopped:
                self._take(self.inbox.get())

    def step(self) -> bool:
        """Do one step. False where there was nothing to compute."""
        self._drain_inbox()
        plan = self._scheduler.schedule()
        if plan:
            self._publish(self._run_and_commit(plan))
        self._observe()
        return plan is not None

    def fail_all(self) -> None:
        """End every request, those in the inbox too: the loop is broken and nobody will serve them."""
        self._drain_inbox()
        self._publish(self._scheduler.fail_all())
        self._observe()

    def check_integrity(self) -> None:
        """Raise AssertionError where memory was lost, or has two owners."""
        self._scheduler.check_integrity()

    def _drain_inbox(self) -> None:
        while not self.inbox.empty():
            self._take(self.inbox.get())

    def _take(self, command: Command) -> None:
        match command:
            case Request():
                self._scheduler.add(command)
            case Abort(request_id):
                self._scheduler.abort(request_id)
            case Call(function):
                function()
            case Stop():
                self._stopped = True

    def _run_and_commit(self, plan: StepPlan) -> Sequence[Event]:
        try:
            result = self._runner.run(plan)
        except Exception:
            log.exception("a run of %d tokens failed", plan.num_tokens)
            self._failures_in_a_row += 1
            return self._scheduler.fail(plan)
        self._failures_in_a_row = 0
        return self._scheduler.commit(plan, result)

    def _observe(self) -> None:
        scheduler = self._scheduler
        self.load = Load(
            scheduler.num_running,
            scheduler.num_waiting,
            scheduler.num_cached_tokens,
            scheduler.num_preemptions,
        )
