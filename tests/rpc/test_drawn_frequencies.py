"""What a server draws has the frequencies of the probabilities that it tells."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.process import ServerProcess
from tests.unit.test_sampler import quantile

PROMPT = " "
"""Leaves the model unsure: 66 tokens come 5 times in 16,384 or more."""

VOCABULARY, ITEMS, SEQUENCES, CALLS = 1024, 256, 16, 4
TIMEOUT_S = 300.0


def _probabilities(stub: llm_pb2_grpc.LLMServiceStub) -> list[float]:
    """Of each token of the vocabulary after the prompt."""
    found: list[float] = []
    for first in range(0, VOCABULARY, ITEMS):
        ids = [llm_pb2.TokenIds(ids=[each]) for each in range(first, first + ITEMS)]
        asked = llm_pb2.ScoreTextRequest(prompt=PROMPT, candidate_token_ids=ids)
        found += [math.exp(score.logprob) for score in stub.ScoreText(asked, timeout=TIMEOUT_S).scores]
    return found


def _drawn(stub: llm_pb2_grpc.LLMServiceStub) -> Counter[int]:
    """The first tokens of many answers, each with a seed of its own."""
    drawn: Counter[int] = Counter()
    options = llm_pb2.ResponseOptions(tokens=True)
    for call in range(CALLS):
        seeds = [(call * ITEMS + item) * SEQUENCES for item in range(ITEMS)]
        batch = llm_pb2.BatchGenerateTextRequest(
            requests=[
                Request(
                    prompt=PROMPT,
                    max_tokens=1,
                    sampling=llm_pb2.Sampling(temperature=1, n=SEQUENCES, seed=seed),
                    response_options=options,
                )
                for seed in seeds
            ]
        )
        for item in stub.BatchGenerateText(batch, timeout=TIMEOUT_S):
            assert [each.seed for each in item.response.sequences] == [
                seeds[item.item] + index for index in range(SEQUENCES)
            ]
            drawn.update(each.tokens[0].id for each in item.response.sequences)
    return drawn


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_first_tokens_at_temperature_1_follow_the_told_probabilities(embedded: ServerProcess) -> None:
    with embedded.channel() as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        probabilities, drawn = _probabilities(stub), _drawn(stub)
    num_drawn = ITEMS * SEQUENCES * CALLS
    assert drawn.total() == num_drawn
    assert math.fsum(probabilities) == pytest.approx(1, abs=1e-5)
    expected = [num_drawn * probability for probability in probabilities]
    often = [token for token, count in enumerate(expected) if count >= 5]
    bins = [(drawn[token], expected[token]) for token in often]
    rest = num_drawn - sum(found for found, _ in bins), num_drawn - math.fsum(each for _, each in bins)
    bins += [rest] if rest[1] >= 5 else []
    assert len(bins) > 50
    assert sum((found - wanted) ** 2 / wanted for found, wanted in bins) < quantile(len(bins) - 1)
