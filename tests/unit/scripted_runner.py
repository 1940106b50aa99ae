"""A model runner without a model: its tokens are a function of a request's history, its cache is checked."""

from __future__ import annotations

import asyncio
import queue
import threading
import zlib
from collections.abc import Callable, Collection, Sequence

from llm_grpc.engine.step_plan import (
    MAX_SCORED_ROWS,
    Sample,
    SlotCopy,
    StepPlan,
    StepResult,
    TokenScore,
)
from llm_grpc.engine.warm_up import WARM_UP
from llm_grpc.runtime.first_tokens import FirstTokens
from llm_grpc.sampling_params import FinishReason, SamplingParams

HANG_S = 30.0
"""A wait that lasts longer than this is a hang, and fails the test."""

VOCAB = 50


class BrokenPlan(BaseException):
    """The scheduler made a plan that no cache could compute. Not an Exception: the engine must not take it
    for a failed run."""


def hashed(history: Sequence[int]) -> int:
    """The next token: 1 to VOCAB - 1, so that 0 can be an EOS that never comes."""
    return 1 + zlib.crc32(repr(list(history)).encode()) % (VOCAB - 1)


def scored(history: Sequence[int], token: int, num_top: int = 0) -> TokenScore:
    """How likely ``token`` is after ``history``: what a step tells where it is asked for that."""
    before = zlib.crc32(repr(list(history)).encode())

    def logprob(each: int) -> float:
        return -(zlib.crc32(b"%d" % each, before) % 1024) / 64

    if not num_top:
        return TokenScore(logprob(token))
    top = sorted(((each, logprob(each)) for each in range(VOCAB)), key=lambda pair: (-pair[1], pair[0]))
    return TokenScore(logprob(token), tuple(top[:num_top]))


def script(prompt_tokens: int, tokens: Sequence[int]) -> Callable[[Sequence[int]], int]:
    """A next-token function that says ``tokens`` in turn after any prompt of ``prompt_tokens`` tokens."""
    return lambda history: tokens[len(history) - prompt_tokens]


class ScriptedRunner:
    """Writes the planned tokens to lists, one a slot, and refuses a plan that does not continue them. Slots
    between those that decode are written to as ``SlotRunner`` does it.

    Where a token is masked or banned, the next higher one comes that is not. Scores are those of ``scored``.
    ``faults`` are raised by the next runs, one each; None stands for a good run. With ``gated`` each run
    waits, before it computes anything, until the test lets it pass.
    """

    def __init__(self, next_token: Callable[[Sequence[int]], int] = hashed, *, gated: bool = False) -> None:
        self.cache: dict[int, list[int]] = {}
        self.plans: list[StepPlan] = []
        self.faults: list[BaseException | None] = []
        self._next_token = next_token
        self._first_tokens = FirstTokens()
        self._guessed: set[int] = set()
        self._gated = gated
        self._arrived: queue.SimpleQueue[StepPlan] = queue.SimpleQueue()
        self._passes = threading.Semaphore(0)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step, as ``ModelRunner`` says. Those of a warm-up, which repeat, are nothing."""
        if plan.samples and plan.samples[0].params is WARM_UP:
            return StepResult([0] * len(plan.samples))
        if self._gated:
            self._arrived.put(plan)
            if not self._passes.acquire(timeout=HANG_S):
                raise BrokenPlan("the test never let this run pass")
        self.plans.append(plan)
        fault = self.faults.pop(0) if self.faults else None
        if fault:
            raise fault
        histories = self._write(plan)
        return self._result(plan, histories)

    def _result(self, plan: StepPlan, histories: list[list[int]]) -> StepResult:
        tokens = [self._choose(sample, histories[sample.row]) for sample in plan.samples]
        logprobs = {
            place: scored(histories[sample.row], token, sample.params.num_logprobs)
            for place, (sample, token) in enumerate(zip(plan.samples, tokens, strict=True))
            if sample.params.num_logprobs is not None
        }
        scores = [scored(histories[each.row], each.token, each.num_top) for each in plan.scores]
        _check(len(scores) <= MAX_SCORED_ROWS, f"{len(scores)} scores in a step")
        return StepResult(tokens, logprobs, scores)

    def _choose(self, sample: Sample, history: list[int]) -> int:
        """The next token, as ``next_token`` has it or a higher one that may come."""
        said = [*sample.prompt_ids, *sample.output_ids]
        _check(not said or said == history, f"{said} are told as the tokens before, and {history} are")
        token, bits = self._next_token(history), sample.mask.wait() if sample.mask else None
        while token in sample.banned or (bits is not None and not bits[token // 32] >> token % 32 & 1):
            token = (token + 1) % VOCAB
        return token

    async def at_run(self) -> StepPlan:
        """Wait until the engine thread stands before a run, and return its plan."""
        return await asyncio.to_thread(self._arrived.get, timeout=HANG_S)

    def let_pass(self) -> None:
        """Let the run that waits, or the next one, compute."""
        self._passes.release()

    async def next_run(self) -> StepPlan:
        """Let the run that waits compute, and return the plan of the one after it."""
        self.let_pass()
        return await self.at_run()

    def gate(self) -> None:
        """Make every run from now on wait."""
        self._gated = True

    def open(self) -> None:
        """Let all runs pass from now on."""
        self._gated = False
        self._passes.release()

    def expected(
        self, prompt: Sequence[int], params: SamplingParams, context_tokens: int, eos: Collection[int] = ()
    ) -> tuple[list[int], FinishReason]:
        """What a request gets when nobody else is there."""
        output: list[int] = []
        while True:
            output.append(self._next_token([*prompt, *output]))
            if output[-1] in eos:
                return output, FinishReason.EOS
            if len(output) == params.max_tokens:
                return output, FinishReason.LENGTH
            if len(prompt) + len(output) == context_tokens:
                return output, FinishReason.CONTEXT_LIMIT

    def _write(self, plan: StepPlan) -> list[list[int]]:
        """Write the plan's tokens; return, for each packed token, its slot's tokens up to and with it."""
        histories: list[list[int]] = []
        for release in plan.releases:
            self.cache[release.slot] = self.cache.get(release.slot, [])[: release.num_kept]
        for copy in plan.copies:
            self._copy(copy)
        slots = [row.slot for row in plan.decode] + ([plan.chunk.slot] if plan.chunk else [])
        _check(len(slots) > 0 and len(slots) == len(set(slots)), f"a slot twice, or none, in {plan}")
        for row in plan.decode:
            _check(row.position > 0, f"a decode row at position 0: {row}")
            self._append(row.slot, row.position, row.token, histories)
        if plan.chunk:
            _check(len(plan.chunk.tokens) > 0, f"an empty chunk: {plan.chunk}")
            held = self.cache.get(plan.chunk.slot, [])
            _check(plan.chunk.start <= len(held), f"slot {plan.chunk.slot} holds {len(held)} in {plan}")
            self.cache[plan.chunk.slot] = held[: plan.chunk.start]  # what was behind is a former owner's
            if plan.chunk.num_guesses:
                self._guessed.add(plan.chunk.slot)
            for offset, token in enumerate(plan.chunk.tokens):
                self._append(plan.chunk.slot, plan.chunk.start + offset, token, histories)
        _check(len(histories) == plan.num_tokens, f"num_tokens is wrong in {plan}")
        self._write_idle(plan)
        return histories

    def _copy(self, copy: SlotCopy) -> None:
        held = self.cache.get(copy.source, [])
        _check(copy.source != copy.target, f"a copy to itself: {copy}")
        _check(0 < copy.num_tokens <= len(held), f"{copy} of {len(held)} tokens")
        self.cache[copy.target] = held[: copy.num_tokens]

    def _write_idle(self, plan: StepPlan) -> None:
        decoding = {row.slot for row in plan.decode}
        self._first_tokens.remember(plan)
        for row in self._first_tokens.decode_rows(plan):
            if row.slot not in decoding and self.cache.get(row.slot):
                self.cache[row.slot][row.position] = row.token

    def _append(self, slot: int, position: int, token: int, histories: list[list[int]]) -> None:
        cached = self.cache.get(slot, [])
        if slot in self._guessed:
            del cached[position:]  # guesses that were wrong
        _check(position == len(cached), f"slot {slot} holds {len(cached)} tokens, written at {position}")
        cached.append(token)
        histories.append(cached[:])


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise BrokenPlan(message)
