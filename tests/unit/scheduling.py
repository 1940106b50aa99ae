"""Requests and steps for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from llm_grpc.engine.blocks import MAX_CHUNK_TOKENS, Blocks
from llm_grpc.engine.request import Event, Request, TokenEvent
from llm_grpc.engine.scheduler import Scheduler
from llm_grpc.engine.slot_table import SlotTable
from llm_grpc.engine.slots import Slots
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import StepPlan
from llm_grpc.sampling_params import SamplingParams
from tests.unit.scripted_runner import VOCAB, ScriptedRunner

EOS = 0


def request(
    request_id: int,
    prompt: list[int],
    max_tokens: int = 100,
    *,
    seed: int = 0,
    salt: str | None = "",
    **fields: Any,
) -> Request:
    """A request; with the salt None it does not use the cache. ``fields`` are more of it or its params."""
    asked = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.__dataclass_fields__}
    params = SamplingParams(
        max_tokens=max_tokens, seed=seed, cache_disabled=salt is None, cache_salt=salt or "", **asked
    )
    return Request(request_id, prompt, params, **fields)


def slot_scheduler(
    num_slots: int,
    context_tokens: int,
    chunk_tokens: int,
    eos_token_ids: Collection[int],
    budget: StepBudget | None = None,
    room: int | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Scheduler:
    """A scheduler over slots that have memory for ``room`` tokens; by itself for all they can hold."""
    memory = Slots(num_slots, context_tokens, room)
    return Scheduler(
        memory, context_tokens, chunk_tokens, eos_token_ids, budget, vocabulary_size=VOCAB, clock=clock
    )


def slot_table(scheduler: Scheduler) -> SlotTable:
    """The books of a scheduler over slots."""
    assert isinstance(scheduler._memory, Slots)
    return scheduler._memory.table


def block_scheduler(
    num_blocks: int,
    block_size: int,
    num_slots: int,
    context_tokens: int,
    chunk_tokens: int,
    eos_token_ids: Collection[int] = (),
    budget: StepBudget | None = None,
    *,
    max_chunk_tokens: int = MAX_CHUNK_TOKENS,
) -> tuple[Scheduler, Blocks]:
    """A scheduler over blocks."""
    blocks = Blocks(num_blocks, block_size, num_slots, max_chunk_tokens)
    scheduler = Scheduler(
        blocks, context_tokens, chunk_tokens, eos_token_ids, budget, vocabulary_size=VOCAB, clock=lambda: 0.0
    )
    return scheduler, blocks


def tokens_of(events: Iterable[Event]) -> list[TokenEvent]:
    """The events, none of which is a failure."""
    tokens = []
    for event in events:
        assert isinstance(event, TokenEvent)
        tokens.append(event)
    return tokens


def step(scheduler: Scheduler, runner: ScriptedRunner) -> tuple[StepPlan, list[TokenEvent]]:
    """Plan, run and commit one step."""
    plan = scheduler.schedule()
    assert plan is not None
    events = tokens_of(scheduler.commit(plan, runner.run(plan)))
    scheduler.check_integrity()
    return plan, events


def finish(scheduler: Scheduler, runner: ScriptedRunner) -> list[TokenEvent]:
    """Step until nothing is left to do."""
    events: list[TokenEvent] = []
    while plan := scheduler.schedule():
        events += tokens_of(scheduler.commit(plan, runner.run(plan)))
        scheduler.check_integrity()
    return events
