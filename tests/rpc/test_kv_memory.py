"""A cache with less memory than the context: refusals, limits, load, and the memory of the process."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.manifest import load_manifest
from llm_grpc.v1 import admin_pb2, admin_pb2_grpc, llm_pb2_grpc, model_pb2, model_pb2_grpc
from llm_grpc.v1.llm_pb2 import FINISH_REASON_CONTEXT_LIMIT, FINISH_REASON_LENGTH, Cache, Stopping
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.conftest import Serve
from tests.rpc.models import CONTEXT_TOKENS
from tests.rpc.process import HANG_S, ServerProcess
from tests.rpc.test_bad_input import details
from tests.rpc.test_startup import refusal
from tests.unit.scripted_runner import ScriptedRunner

TOKEN_BYTES = 64
"""Of the scripted model."""

ROOM = 40
"""Tokens that there is memory for, of a context of 64."""

TIGHT = {"kv_cache_memory": ROOM * TOKEN_BYTES}


@pytest.mark.parametrize(
    ("request_", "field", "problem", "reason"),
    [
        (
            Request(prompt="a" * ROOM),
            "prompt",
            "has 40 tokens, and the limit is 39",
            "PROMPT_TOO_LONG",
        ),
        (
            Request(prompt_token_ids=[1] * ROOM),
            "prompt_token_ids",
            "has 40 tokens, and the limit is 39",
            "PROMPT_TOO_LONG",
        ),
        (Request(prompt="a", max_tokens=40), "max_tokens", "is 40, and must be 0 to 39", "INVALID_PARAMETER"),
        (
            Request(prompt="a" * 21, max_tokens=20),
            "max_tokens",
            "is 20 after a prompt of 21 tokens, and the limit is 40 tokens in all",
            "INVALID_PARAMETER",
        ),
        (
            Request(prompt_token_ids=[1] * 39, max_tokens=2),
            "max_tokens",
            "is 2 after a prompt of 39 tokens, and the limit is 40 tokens in all",
            "INVALID_PARAMETER",
        ),
    ],
    ids=["prompt", "ids", "max_tokens", "both", "both with ids"],
)
async def test_what_never_fits_is_refused(
    serve: Serve, request_: Request, field: str, problem: str, reason: str
) -> None:
    async with serve(ScriptedRunner(), engine=TIGHT) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.GenerateText(request_, timeout=HANG_S)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await stub.StreamGenerateText(request_, timeout=HANG_S).read()
        for error in (unary.value, streamed.value):
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            violation = details(error, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == field
            assert problem in violation.description
            assert details(error, error_details_pb2.ErrorInfo).reason == reason
        assert server.admission.held == 0


async def test_what_just_fits_is_served_and_a_default_is_no_wish(serve: Serve) -> None:
    async with serve(ScriptedRunner(), engine=TIGHT) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        asked = await stub.GenerateText(Request(prompt="a" * 20, max_tokens=20), timeout=HANG_S)
        assert (asked.usage.completion_tokens, asked.finish_reason) == (20, FINISH_REASON_LENGTH)
        default = await stub.GenerateText(Request(prompt="a" * 30), timeout=HANG_S)
        assert (default.usage.completion_tokens, default.finish_reason) == (10, FINISH_REASON_CONTEXT_LIMIT)


@pytest.mark.parametrize(
    ("memory", "context"),
    [(TIGHT["kv_cache_memory"], ROOM), ("1MiB", CONTEXT_TOKENS), (0, CONTEXT_TOKENS)],
)
async def test_limits_are_those_of_the_memory(serve: Serve, memory: int | str, context: int) -> None:
    async with serve(ScriptedRunner(), engine={"kv_cache_memory": memory}) as (_, channel):
        stub = model_pb2_grpc.ModelServiceStub(channel)
        model = (await stub.GetModel(model_pb2.GetModelRequest(), timeout=HANG_S)).model
        limits = model.limits
        assert limits.context_tokens == context
        assert limits.max_prompt_tokens == limits.max_tokens == context - 1
        assert model.defaults.max_tokens == context - 1


async def test_utilization_is_of_the_memory(serve: Serve) -> None:
    """Two of three requests fit; what they have computed is a part of what there is, not of the pool."""
    runner = ScriptedRunner()
    async with serve(runner, engine=TIGHT) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = Request(prompt="a" * 9, max_tokens=11, cache=Cache(disabled=True))
        calls = [asyncio.ensure_future(stub.GenerateText(request, timeout=HANG_S)) for _ in range(3)]
        await runner.at_run()
        while server.admission.held < 3:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        for _ in range(3):
            await runner.next_run()
        async with grpc.aio.insecure_channel(server.admin_address) as admin:
            load = await admin_pb2_grpc.AdminServiceStub(admin).GetLoad(
                admin_pb2.GetLoadRequest(), timeout=HANG_S
            )
        assert (load.requests_running, load.requests_waiting) == (2, 1)
        # Step by step: one prompt; the other one beside its second token; both together.
        assert load.kv_utilization == pytest.approx((9 + 2 + 9 + 1) / ROOM)
        runner.open()
        answers = await asyncio.gather(*calls)
        assert len({answer.generated_text for answer in answers}) == 1


def test_too_little_for_any_request_stops_the_start() -> None:
    line = refusal("--kv-cache-memory=1B")
    assert "kv_cache_memory is 1 B, and 2 tokens of its key-value cache need 5.0 KiB" in line


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_needs_weights_and_touched_cache_and_300_mb() -> None:
    """16 requests of all the lengths there are, four times as much together as there is memory for."""
    manifest = load_manifest(EMBEDDED_MODEL)
    token_bytes, room = manifest.kv_cache.token_bytes, 2048
    flags = ("--max-running=16", f"--kv-cache-memory={room * token_bytes}")
    with ServerProcess(*flags) as server, server.channel() as channel:
        server.wait_for(re.compile(rf"weights of 7\.4 MiB; up to 5\.0 MiB .*, {room} tokens of 2\.5 KiB"))
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        calls = []
        for number in range(16):
            prompt = [1 + number, *range(1, 100 + 50 * number)]
            request = Request(prompt_token_ids=prompt, max_tokens=24, stopping=Stopping(ignore_eos=True))
            calls.append(stub.GenerateText.future(request, timeout=HANG_S))
        assert all(call.result(HANG_S).usage.completion_tokens == 24 for call in calls)
        status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
        assert peak < manifest.weights_bytes + room * token_bytes + 300e6
