"""What a caller sees of the cache: usage, and nothing else."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from llm_grpc.v1 import llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import Cache, GenerateTextRequest, GenerateTextResponse
from tests.rpc.conftest import Serve
from tests.rpc.process import HANG_S
from tests.unit.scripted_runner import ScriptedRunner

PROMPT = "a prompt of 22 tokens "
NUM_TOKENS = len(PROMPT)


async def ask(channel: grpc.aio.Channel, cache: Cache | None = None, tail: str = "") -> GenerateTextResponse:
    request = GenerateTextRequest(prompt=PROMPT + tail, max_tokens=6, cache=cache)
    return await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(request, timeout=HANG_S)


async def test_a_prompt_s_beginning_is_found_and_the_text_is_the_same(serve: Serve) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        first, second = await ask(channel), await ask(channel)
        longer = await ask(channel, tail="and more")
    assert [answer.usage.cached_tokens for answer in (first, second, longer)] == [
        0,
        NUM_TOKENS - 1,
        NUM_TOKENS,
    ]
    assert first.generated_text == second.generated_text


async def test_a_stream_says_what_the_whole_answer_says(serve: Serve) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        await ask(channel)
        request = GenerateTextRequest(prompt=PROMPT, max_tokens=6)
        stream = llm_pb2_grpc.LLMServiceStub(channel).StreamGenerateText(request, timeout=HANG_S)
        parts = [part async for part in stream]
        whole = await ask(channel)
    assert parts[-1].usage == whole.usage
    assert whole.usage.cached_tokens == NUM_TOKENS - 1
    assert "".join(part.generated_text for part in parts) == whole.generated_text


async def test_a_salt_shares_with_itself_alone(serve: Serve) -> None:
    salts = ["a", "b", "", "a", "b", "", "é" * 128]
    async with serve(ScriptedRunner()) as (_, channel):
        answers = [await ask(channel, Cache(salt=salt)) for salt in salts]
    most = NUM_TOKENS - 1
    assert [answer.usage.cached_tokens for answer in answers] == [0, 0, 0, most, most, most, 0]


async def test_who_disables_the_cache_takes_nothing_and_leaves_nothing(serve: Serve) -> None:
    off = Cache(disabled=True)
    async with serve(ScriptedRunner()) as (_, channel):
        answers = [await ask(channel, cache) for cache in (off, None, off, None)]
    assert [answer.usage.cached_tokens for answer in answers] == [0, 0, 0, NUM_TOKENS - 1]


@pytest.mark.parametrize("prefix_reuse", [True, False])
async def test_a_server_may_do_without(serve: Serve, prefix_reuse: bool) -> None:
    async with serve(ScriptedRunner(), engine={"prefix_reuse": prefix_reuse}) as (_, channel):
        answers = [await ask(channel), await ask(channel)]
        together = await asyncio.gather(*(ask(channel, tail=str(i)) for i in range(6)))
    found = [answer.usage.cached_tokens for answer in [*answers, *together]]
    assert found == ([0, NUM_TOKENS - 1] + [NUM_TOKENS] * 6 if prefix_reuse else [0] * 8)
