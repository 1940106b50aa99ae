"""Measure the served embedded model on held-out items: greedy, exact match, through gRPC.

`llm-grpc serve`, then `python models/embedded/measure.py localhost:50051` writes accuracy.json beside this
file; the model card's table holds the same numbers, and a test reproduces them. What measure_formats.py wrote
stays.
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import islice
from pathlib import Path

import grpc
from tasks import TASKS, Item, Split, items

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc

RESULT = Path(__file__).with_name("accuracy.json")
SEED = 4_000_003
"""Neither training nor the training script's own evaluation draws from it."""

NUM_ITEMS = 1_000
CONCURRENCY = 32


async def accuracy(address: str, measured: list[Item]) -> float:
    """Share of items whose answer is exactly right."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        gate = asyncio.Semaphore(CONCURRENCY)

        async def is_right(item: Item) -> bool:
            async with gate:
                answer = await stub.GenerateText(llm_pb2.GenerateTextRequest(prompt=item.prompt), timeout=100)
            return answer.generated_text == item.answer

        return sum(await asyncio.gather(*map(is_right, measured))) / len(measured)


def sample(task: str, split: Split) -> list[Item]:
    """The items of one task that are measured."""
    return list(islice(items(task, split, SEED), NUM_ITEMS))


def measure(address: str) -> dict[str, object]:
    """Accuracy of every task on both splits."""
    found = {
        split: {task: asyncio.run(accuracy(address, sample(task, split))) for task in TASKS}
        for split in ("held_out", "unseen_phrasing")
    }
    return {"items_per_task": NUM_ITEMS, "seed": SEED, **found}


if __name__ == "__main__":
    known = json.loads(RESULT.read_text())
    RESULT.write_text(json.dumps({**known, **measure(sys.argv[1])}, indent=2) + "\n")
    print(RESULT.read_text())
