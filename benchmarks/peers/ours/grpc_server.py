"""``llm-grpc serve`` in another process, called through real gRPC with the client's stubs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from benchmarks.peers.harness import MAX_RUNNING, Request, main
from llm_grpc.client.channel import channel_options
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc

READY = re.compile(r"serving llm_grpc\.v1\.LLMService on (\S+)")
CONTEXT_TOKENS = 1024
TIMEOUT_S = 900.0


class Server:
    """A client with one channel, as many streams as there are requests."""

    def __init__(self, address: str, process: int) -> None:
        self.address = address
        self.processes = [process]

    def run(self, requests: Sequence[Request]) -> None:
        """Send all of them at once; the server queues what does not fit."""
        asyncio.run(self._run(requests))

    async def _run(self, requests: Sequence[Request]) -> None:
        async with grpc.aio.insecure_channel(self.address, options=channel_options()) as channel:
            stub = llm_pb2_grpc.LLMServiceStub(channel)
            await asyncio.gather(*(_stream(stub, request) for request in requests))


async def _stream(stub: llm_pb2_grpc.LLMServiceStub, request: Request) -> None:
    request.begin()
    try:
        async for message in stub.StreamGenerateText(_message(request), timeout=TIMEOUT_S):
            request.stamp(len(message.tokens))
    except grpc.aio.AioRpcError as error:
        request.error = f"{error.code().name}: {error.details()}"


def _message(request: Request) -> llm_pb2.GenerateTextRequest:
    return llm_pb2.GenerateTextRequest(
        prompt_token_ids=request.prompt,
        max_tokens=request.max_tokens,
        sampling=llm_pb2.Sampling(temperature=0),
        stopping=llm_pb2.Stopping(ignore_eos=True),
        response_options=llm_pb2.ResponseOptions(tokens=True),
        cache=llm_pb2.Cache(disabled=True),
    )


@contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Server]:
    """Start the server as an operator does, and wait for the line that says where it serves."""
    flags = [f"--model={model_dir}", f"--threads={threads}", f"--max-running={MAX_RUNNING}"]
    ports = ["--address=127.0.0.1:0", "--metrics-address=", "--admin-address="]
    command = [sys.executable, "-m", "llm_grpc.cli.main", "serve", *flags, *ports, "--drain-window-s=0"]
    # Random weights repeat themselves, and guesses would come true that no trained model rewards.
    command += [f"--max-context-tokens={CONTEXT_TOKENS}", "--no-prompt-lookup"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield Server(_address(process), process.pid)
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    log = []
    for line in process.stderr:
        log.append(line)
        if match := READY.search(line):
            # Nobody reads its log from here on, and a full pipe would stop it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return match[1]
    raise RuntimeError(f"the server ended: {''.join(log[-5:])}")


if __name__ == "__main__":
    main(load, ["llm-grpc", "onnxruntime", "grpcio"])
