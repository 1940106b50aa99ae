"""Signals while calls run: what callers see, the exit code, and what comes after.

The servers of most tests stand still in mid stream until the test lets them go on, so that a signal always
finds running calls.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llm_grpc.v1 import admin_pb2, admin_pb2_grpc, llm_pb2, llm_pb2_grpc
from tests.rpc.models import CONTEXT_TOKENS
from tests.rpc.process import ADMIN, HANG_S, ServerProcess
from tests.rpc.scrape import scrape_until
from tests.rpc.scripted_server import Place

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PROMPT = "go"
WHOLE_TEXT = CONTEXT_TOKENS - len(PROMPT)
REQUEST = llm_pb2.GenerateTextRequest(prompt=PROMPT, max_tokens=WHOLE_TEXT)

Start = Callable[..., ServerProcess]


class Gate:
    """A FIFO that a scripted server waits at."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._opened = False

    async def open(self) -> None:
        """Let the server that waits, or the next one that comes, go on."""
        await asyncio.to_thread(lambda: self.path.open("wb").close())


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def start(scripted_model: Path, gate: Gate) -> Iterator[Start]:
    """``start(*flags, place=...)``: a scripted server that stands still at ``gate``."""
    started: list[ServerProcess] = []

    def start(*flags: str, address: str = "127.0.0.1:0", place: Place = "decoding") -> ServerProcess:
        program = ("tests.rpc.scripted_server", str(scripted_model), str(gate.path), place)
        started.append(ServerProcess(*flags, address=address, program=program))
        return started[-1]

    yield start
    for process in started:
        process.__exit__()


@pytest.fixture
async def server(start: Start) -> ServerProcess:
    """A server of two slots with streams that stand still."""
    process = start("--max-running=2", "--max-waiting=8", "--drain-limit-s=60")
    await asyncio.to_thread(process.wait_ready)
    return process


@pytest.fixture
async def channel(server: ServerProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with server.aio_channel() as channel:
        yield channel


async def load(server: ServerProcess, is_it: Callable[[admin_pb2.GetLoadResponse], bool]) -> None:
    """Ask the admin port until the load is what the test waits for."""
    async with asyncio.timeout(HANG_S), grpc.aio.insecure_channel(server.admin_address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        while not is_it(await stub.GetLoad(admin_pb2.GetLoadRequest())):
            pass


def holds(requests: int) -> Callable[[admin_pb2.GetLoadResponse], bool]:
    return lambda load: load.requests_running + load.requests_waiting == requests


def stream(channel: grpc.aio.Channel) -> Any:
    return llm_pb2_grpc.LLMServiceStub(channel).StreamGenerateText(REQUEST, timeout=HANG_S)


async def busy(
    server: ServerProcess, channel: grpc.aio.Channel
) -> tuple[list[Any], llm_pb2.GenerateTextResponse]:
    """Five streams, more than there are slots; the first message of the first, which is in mid stream."""
    running = stream(channel)
    first = await running.read()
    calls = [running, *(stream(channel) for _ in range(4))]
    await load(server, holds(5))
    return calls, first


async def read(call: Any) -> list[llm_pb2.GenerateTextResponse]:
    """The messages that nobody has read yet."""
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


def watch(channel: grpc.aio.Channel) -> Any:
    request = health_pb2.HealthCheckRequest(service="llm_grpc.v1.LLMService")
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(request, timeout=HANG_S)


async def code_of(call: Any) -> grpc.StatusCode:
    """The status of a call that does not end well."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await (read(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    return error.value.code()


async def test_sigterm_lets_running_calls_finish(
    server: ServerProcess, channel: grpc.aio.Channel, gate: Gate
) -> None:
    calls, first = await busy(server, channel)
    statuses = watch(channel)
    assert (await statuses.read()).status == SERVING

    server.terminate()
    assert (await statuses.read()).status == NOT_SERVING
    assert await statuses.read() is grpc.aio.EOF, "an open Watch would hold up the drain"
    assert server.process.poll() is None
    async with server.aio_channel() as late:
        assert await code_of(stream(late)) is grpc.StatusCode.UNAVAILABLE
    assert await code_of(stream(channel)) is grpc.StatusCode.UNAVAILABLE

    await gate.open()
    for number, call in enumerate(calls):
        responses = ([first] if number == 0 else []) + await read(call)
        assert responses[-1].finish_reason == llm_pb2.FINISH_REASON_LENGTH
        assert responses[-1].usage.completion_tokens == WHOLE_TEXT
        assert [response.sequence for response in responses] == list(range(len(responses)))
    assert await asyncio.to_thread(server.wait) == 0


async def test_the_window_takes_calls_and_a_second_sigterm_ends_at_once(start: Start) -> None:
    server = start("--drain-window-s=3600")
    await asyncio.to_thread(server.wait_ready)
    async with server.aio_channel() as channel:
        statuses = watch(channel)
        assert (await statuses.read()).status == SERVING
        server.terminate()
        assert (await statuses.read()).status == NOT_SERVING
        short = llm_pb2.GenerateTextRequest(prompt=PROMPT, max_tokens=2)
        answer = await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(short, timeout=HANG_S)
        assert answer.usage.completion_tokens == 2
        server.terminate()
        assert await asyncio.to_thread(server.wait) == 128 + signal.SIGTERM


async def test_a_second_sigterm_ends_at_once_under_load(
    server: ServerProcess, channel: grpc.aio.Channel
) -> None:
    running, statuses = stream(channel), watch(channel)
    await running.read()
    assert (await statuses.read()).status == SERVING
    server.terminate()
    assert (await statuses.read()).status == NOT_SERVING
    server.terminate()
    assert await asyncio.to_thread(server.wait) == 128 + signal.SIGTERM
    assert await code_of(running) is grpc.StatusCode.UNAVAILABLE


async def test_calls_longer_than_the_drain_limit_are_ended(start: Start, gate: Gate) -> None:
    server = start("--drain-limit-s=0")
    await asyncio.to_thread(server.wait_ready)
    async with server.aio_channel() as channel:
        call = stream(channel)
        await call.read()
        server.terminate()
        assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
        await gate.open()
        assert await asyncio.to_thread(server.wait) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_loading_ends_with_0(start: Start, number: signal.Signals) -> None:
    server = start(place="loading")
    await asyncio.to_thread(server.wait_for, ADMIN)
    server.process.send_signal(number)
    assert await asyncio.to_thread(server.wait) == 0


async def test_after_sigkill_the_next_server_has_the_port(start: Start) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = start("--max-running=2", "--max-waiting=8", address=address)
    await asyncio.to_thread(server.wait_ready)
    async with server.aio_channel() as channel:
        calls, _ = await busy(server, channel)
        server.process.kill()
        codes = {await code_of(call) for call in calls}
        assert codes == {grpc.StatusCode.UNAVAILABLE}
        assert await asyncio.to_thread(server.wait) == -signal.SIGKILL

        with ServerProcess(address=address) as successor:
            assert successor.address == address
            request = llm_pb2.GenerateTextRequest(prompt=PROMPT, max_tokens=2)
            stub = llm_pb2_grpc.LLMServiceStub(channel)
            answer = await stub.GenerateText(request, timeout=HANG_S, wait_for_ready=True)
            assert answer.usage.completion_tokens in {1, 2}


CLIENT = """
import sys, grpc
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
request = llm_pb2.GenerateTextRequest.FromString(bytes.fromhex(sys.argv[2]))
for response in llm_pb2_grpc.LLMServiceStub(grpc.insecure_channel(sys.argv[1])).StreamGenerateText(request):
    print(response.sequence, flush=True)
"""


async def test_a_killed_client_frees_its_slot(start: Start, gate: Gate) -> None:
    server = start("--max-running=1", "--max-waiting=1")
    await asyncio.to_thread(server.wait_ready)
    command = [sys.executable, "-c", CLIENT, server.address, REQUEST.SerializeToString().hex()]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert client.stdout
    assert await client.stdout.readline() == b"0\n"
    client.kill()
    await client.wait()
    cancelled = {"grpc_method": "StreamGenerateText", "grpc_code": "CANCELLED"}
    name = "grpc_server_handled_total"
    await scrape_until(server.metrics_address, lambda samples: samples.value(name, **cancelled) == 1)
    await gate.open()
    await load(server, holds(0))
    async with server.aio_channel() as channel:
        answer = await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(REQUEST, timeout=HANG_S)
        assert answer.usage.completion_tokens == WHOLE_TEXT


async def test_a_drain_of_the_real_model_loses_nothing() -> None:
    """Sampled with seeds: the texts that a drain lets finish are those of a server that nobody stops."""
    sampling = [llm_pb2.Sampling(temperature=2, seed=seed) for seed in range(8)]
    requests = [llm_pb2.GenerateTextRequest(prompt=PROMPT, max_tokens=200, sampling=s) for s in sampling]
    with ServerProcess("--max-running=8", "--drain-limit-s=60") as server:
        async with server.aio_channel() as channel:
            stub = llm_pb2_grpc.LLMServiceStub(channel)
            undisturbed = await asyncio.gather(
                *(read(stub.StreamGenerateText(r, timeout=HANG_S)) for r in requests)
            )
            calls = [stub.StreamGenerateText(request, timeout=HANG_S) for request in requests]
            first: list[Any] = [await call.read() for call in calls]
            server.terminate()
            drained = [[one, *await read(call)] for one, call in zip(first, calls, strict=True)]
            assert [text(responses) for responses in drained] == [
                text(responses) for responses in undisturbed
            ]
        assert server.wait() == 0


def text(responses: list[llm_pb2.GenerateTextResponse]) -> tuple[str, int, int]:
    last = responses[-1]
    assert last.finish_reason
    return "".join(r.generated_text for r in responses), last.finish_reason, last.usage.completion_tokens
