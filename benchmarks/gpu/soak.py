"""Many requests, some of them cancelled, for a while: nothing fails, and no memory grows."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_grpc.client.async_client import AsyncClient
from llm_grpc.client.errors import LLMError

FIRST_ID = 3
"""Those before it are the end of a sequence and its like."""


@dataclass(frozen=True)
class Plan:
    """``share_cancelled`` of the requests are given up after a random part of their tokens."""

    duration_s: float = 60.0
    concurrency: int = 64
    most_prompt: int = 512
    most_output: int = 256
    share_cancelled: float = 0.3
    most_id: int = 255
    seed: int = 0
    interval_s: float = 0.5


@dataclass
class Soaked:
    """What came of it. ``memory`` are the readings of each meter, in bytes, in order."""

    finished: int = 0
    cancelled: int = 0
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    memory: dict[str, list[int]] = field(default_factory=dict)

    def growth_bytes(self, meter: str) -> int:
        """The median of the last quarter of the readings less that of the second one.

        The first quarter is left out: arenas and pools fill then.
        """
        readings = self.memory[meter]
        quarter = max(1, len(readings) // 4)
        return _median(readings[-quarter:]) - _median(readings[quarter : 2 * quarter] or readings[-quarter:])


async def soak(address: str, plan: Plan, meters: dict[str, Callable[[], int]]) -> Soaked:
    """Keep ``plan.concurrency`` requests going; each meter is read every ``plan.interval_s``."""
    found = Soaked(memory={name: [] for name in meters})
    deadline = time.monotonic() + plan.duration_s
    async with AsyncClient(address, timeout_s=plan.duration_s + 120) as client:
        watching = asyncio.ensure_future(_watch(found, meters, plan.interval_s))
        try:
            workers = [
                _work(client, plan, random.Random(plan.seed * 10_007 + i), deadline, found)
                for i in range(plan.concurrency)
            ]
            await asyncio.gather(*workers)
        finally:
            watching.cancel()
    return found


async def _work(client: AsyncClient, plan: Plan, draw: random.Random, deadline: float, found: Soaked) -> None:
    while time.monotonic() < deadline:
        prompt = [draw.randint(FIRST_ID, plan.most_id) for _ in range(draw.randint(1, plan.most_prompt))]
        num_tokens = draw.randint(1, plan.most_output)
        is_cancelled = draw.random() < plan.share_cancelled
        try:
            got = await _ask(client, prompt, num_tokens, draw.randint(1, num_tokens) if is_cancelled else 0)
        except LLMError as error:
            found.errors[error.code.name] = found.errors.get(error.code.name, 0) + 1
            continue
        found.tokens += got
        if got == num_tokens:
            found.finished += 1
        elif is_cancelled:
            found.cancelled += 1
        else:
            found.errors["ended early"] = found.errors.get("ended early", 0) + 1


async def _ask(client: AsyncClient, prompt: list[int], num_tokens: int, give_up_after: int) -> int:
    """Tokens that came; the call is cancelled once ``give_up_after`` did, unless that is 0."""
    got = 0
    async with client.stream(prompt, max_tokens=num_tokens, ignore_eos=True, tokens=True) as stream:
        async for message in stream:
            got += len(message.tokens)
            if 0 < give_up_after <= got:
                break
    return got


async def _watch(found: Soaked, meters: dict[str, Callable[[], int]], interval_s: float) -> None:
    while True:
        for name, meter in meters.items():
            found.memory[name].append(await asyncio.to_thread(meter))
        await asyncio.sleep(interval_s)


def _median(readings: list[int]) -> int:
    return sorted(readings)[len(readings) // 2]
