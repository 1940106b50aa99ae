"""Batches, scores and cancelling with the two Python clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from llm_grpc.client import (
    AsyncClient,
    Client,
    FieldViolation,
    InvalidRequest,
    Unavailable,
    generate_request,
)
from tests.clients.fake_server import LIMIT_S, FakeLLM

Do = Callable[..., Any]


def sync_do(address: str, method: str, *args: Any, **kwargs: Any) -> Any:
    with Client(address) as client:
        result = getattr(client, method)(*args, **kwargs)
        return list(result) if method == "generate_batch" else result


def async_do(address: str, method: str, *args: Any, **kwargs: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(address) as client:
            result = getattr(client, method)(*args, **kwargs)
            return [each async for each in result] if method == "generate_batch" else await result

    return asyncio.run(run())


@pytest.fixture(params=[sync_do, async_do], ids=["sync", "async"])
def do(request: pytest.FixtureRequest) -> Do:
    chosen: Do = request.param
    return chosen


def test_a_batch_gives_an_answer_or_an_error_for_each_item(do: Do, fake: FakeLLM, address: str) -> None:
    own = generate_request("two", {"seed": 7})
    results = do(address, "generate_batch", ["one", own, ""], max_tokens=5)
    assert [result.item for result in results] == [2, 1, 0]
    error = results[0].result
    assert isinstance(error, InvalidRequest)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER")
    assert error.field_violations == (FieldViolation("prompt", "must not be empty"),)
    assert [result.result.generated_text for result in results[1:]] == ["two", "one"]
    (batch,) = fake.batches
    assert [request.max_tokens for request in batch.requests] == [5, 0, 5]
    assert batch.requests[1] == own
    assert not any(request.request_id for request in batch.requests)


def test_a_batch_that_is_refused_as_a_whole(do: Do, fake: FakeLLM, address: str) -> None:
    fake.refuse(grpc.StatusCode.UNAVAILABLE, times=9)
    with pytest.raises(Unavailable):
        do(address, "generate_batch", ["one"])
    assert len(fake.batches) == 4


def test_a_batch_is_a_sequence(do: Do, address: str) -> None:
    with pytest.raises(TypeError, match="a batch is a sequence of prompts"):
        do(address, "generate_batch", "one")
    with pytest.raises(TypeError, match="unknown options: top_q"):
        do(address, "generate_batch", ["one"], top_q=1)


def test_leaving_a_batch_cancels_it(fake: FakeLLM, address: str) -> None:
    fake.hang = True
    with Client(address) as client:
        for _ in client.generate_batch(["one", "two"]):
            break
        assert fake.ended.wait(LIMIT_S)


async def test_leaving_an_async_batch_cancels_it(fake: FakeLLM, address: str) -> None:
    fake.hang = True
    async with AsyncClient(address) as client:
        results = client.generate_batch(["one", "two"])
        await anext(results)
        await results.aclose()
        assert await asyncio.to_thread(fake.ended.wait, LIMIT_S)


def test_scores_of_texts_and_of_ids(do: Do, fake: FakeLLM, address: str) -> None:
    options = {"top_logprobs": 3, "token_text": True, "model": "m", "adapter": "a", "request_id": "id"}
    options |= {"priority": -4, "cache_disabled": True, "cache_salt": "s"}
    assert do(address, "score", "the", ["cat", "dog"], **options).scores[0].logprob == -1.5
    do(address, "score", [1, 2], [[3], [4, 5]])
    texts, ids = fake.scores
    assert (texts.prompt, list(texts.candidates)) == ("the", ["cat", "dog"])
    assert (texts.top_logprobs, texts.token_text, texts.model, texts.adapter) == (3, True, "m", "a")
    assert (texts.request_id, texts.priority) == ("id", -4)
    assert (texts.cache.disabled, texts.cache.salt) == (True, "s")
    assert list(ids.prompt_token_ids) == [1, 2]
    assert [list(each.ids) for each in ids.candidate_token_ids] == [[3], [4, 5]]
    assert not ids.HasField("cache")


def test_scores_of_what_is_no_candidate(do: Do, address: str) -> None:
    for candidates, problem in (("cat", "a sequence of texts"), (["cat", [1]], "all texts, or all ids")):
        with pytest.raises(TypeError, match=problem):
            do(address, "score", "the", candidates)
    with pytest.raises(TypeError, match="unknown options: top_q"):
        do(address, "score", "the", ["cat"], top_q=1)
    with pytest.raises(ValueError, match="priority: 4294967296 does not fit"):
        do(address, "score", "the", ["cat"], priority=2**32)


def test_cancel_tells_how_many_there_were(do: Do, fake: FakeLLM, address: str) -> None:
    assert do(address, "cancel", "id") == 2
    assert fake.cancelled == ["id"]
    fake.refuse(grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(InvalidRequest):
        do(address, "cancel", "")
