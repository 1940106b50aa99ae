"""A server over blocks: texts, metrics and limits are those of a server over slots."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llm_grpc.server.app import Server
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc
from tests.rpc.conftest import Serve, until
from tests.rpc.models import CONTEXT_TOKENS, write_model_dir
from tests.rpc.process import HANG_S
from tests.rpc.scrape import scrape
from tests.unit.scripted_paged_runner import ScriptedPagedRunner
from tests.unit.scripted_runner import ScriptedRunner

BLOCK_SIZE = 16
TOKEN_BYTES = 64
ON = {"metrics_address": "127.0.0.1:0"}
PROMPTS = ["ten tokens", "of a text ", "and others", "a longer prompt than those before"]
UTILIZATION = "llm_grpc_kv_utilization"


@pytest.fixture(scope="module")
def paged_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_dir(tmp_path_factory.mktemp("paged"), BLOCK_SIZE)


def memory(num_blocks: int) -> dict[str, int]:
    """What is configured for so many blocks; the odd bytes are of no use."""
    return {"kv_cache_memory": num_blocks * BLOCK_SIZE * TOKEN_BYTES + 1}


async def is_idle(server: Server) -> None:
    """Wait until the engine has told its load: the last answer goes out before that."""
    engine = server._hosts[0]._engine
    assert engine
    await until(lambda: engine.load.num_running == 0)


async def texts(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> list[str]:
    asked = [llm_pb2.GenerateTextRequest(prompt=prompt, max_tokens=30) for prompt in PROMPTS]
    answers = await asyncio.gather(*(stub.GenerateText(each, timeout=HANG_S) for each in asked))
    return [answer.generated_text for answer in answers]


async def test_texts_are_those_of_slots_though_requests_give_way(serve: Serve, paged_model: Path) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        expected = await texts(llm_pb2_grpc.LLMServiceStub(channel))
    runner = ScriptedPagedRunner(6, BLOCK_SIZE)
    async with serve(runner, engine=memory(6), server=ON, model=paged_model) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        for _ in range(3):
            runner.gate()
            found = asyncio.ensure_future(texts(stub))
            await until(lambda: server.admission.held == len(PROMPTS))
            runner.open()
            assert await found == expected
        await is_idle(server)
        samples = await scrape(server.metrics_address)
    assert samples.value("llm_grpc_preemptions_total") > 0
    assert samples.value("llm_grpc_generation_tokens_total") == 3 * 30 * len(PROMPTS)
    assert samples.value("llm_grpc_prefix_cache_hits_total") % BLOCK_SIZE == 0
    assert samples.value(UTILIZATION) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"constraint": llm_pb2.Constraint(regex="([A-R][!-/]){15}")},
        {"response_options": llm_pb2.ResponseOptions(top_logprobs=2, token_text=True)},
        {"response_options": llm_pb2.ResponseOptions(prompt_top_logprobs=2, logprobs=True, echo=True)},
        {
            "stopping": llm_pb2.Stopping(
                min_tokens=27, stop_strings=["A", "B", "C", "D", "E"], include_stop=True
            )
        },
    ],
    ids=["form", "logprobs", "prompt", "stops"],
)
async def test_requests_that_give_way_go_on_where_they_were(
    serve: Serve, paged_model: Path, fields: dict[str, Any]
) -> None:
    """Forms, scores and stops are said and told as if nobody had given way."""

    async def answers(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> list[bytes]:
        asked = [llm_pb2.GenerateTextRequest(prompt=prompt, max_tokens=30, **fields) for prompt in PROMPTS]
        found = await asyncio.gather(*(stub.GenerateText(each, timeout=HANG_S) for each in asked))
        for each in found:
            each.usage.ClearField("cached_tokens")  # what others left is another matter
        return [each.SerializeToString(deterministic=True) for each in found]

    async with serve(ScriptedRunner()) as (_, channel):
        expected = await answers(llm_pb2_grpc.LLMServiceStub(channel))
    runner = ScriptedPagedRunner(6, BLOCK_SIZE)
    async with serve(runner, engine=memory(6), server=ON, model=paged_model) as (server, channel):
        runner.gate()
        found = asyncio.ensure_future(answers(llm_pb2_grpc.LLMServiceStub(channel)))
        await until(lambda: server.admission.held == len(PROMPTS))
        runner.open()
        assert await found == expected
        await is_idle(server)
        samples = await scrape(server.metrics_address)
    assert samples.value("llm_grpc_preemptions_total") > 0
    assert samples.value(UTILIZATION) == 0


async def test_utilization_is_of_blocks(serve: Serve, paged_model: Path) -> None:
    runner = ScriptedPagedRunner(10, BLOCK_SIZE)
    async with serve(runner, engine=memory(10), server=ON, model=paged_model) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = llm_pb2.GenerateTextRequest(prompt="a" * (BLOCK_SIZE + 1), max_tokens=9)
        call = asyncio.ensure_future(stub.GenerateText(request, timeout=HANG_S))
        await runner.at_run()
        await runner.next_run()  # the first step has ended
        assert (await scrape(server.metrics_address)).value(UTILIZATION) == pytest.approx(0.2)
        runner.open()
        await call


async def test_memory_for_less_than_a_context_limits_requests(serve: Serve, paged_model: Path) -> None:
    runner = ScriptedPagedRunner(3, BLOCK_SIZE)
    async with serve(runner, engine=memory(3), model=paged_model) as (_, channel):
        stub = model_pb2_grpc.ModelServiceStub(channel)
        model = await stub.GetModel(model_pb2.GetModelRequest(), timeout=HANG_S)
        assert model.model.limits.context_tokens == 3 * BLOCK_SIZE < CONTEXT_TOKENS
