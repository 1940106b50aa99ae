"""A server in a process of its own, on loopback ports that the system picks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import IO, NamedTuple

from llm_grpc.errors import LLMGrpcError

STOP_LIMIT_S = 30.0

FLAGS = {"--address": "127.0.0.1:0", "--metrics-address": "", "--admin-address": "", "--drain-window-s": "0"}


def serve_command(flags: Sequence[str] = ()) -> list[str]:
    """The command of a server with these flags; what they do not set of FLAGS is as there."""
    given = {flag.partition("=")[0] for flag in flags}
    if given & {"--host", "--port"}:
        given.add("--address")
    ours = [f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given]
    return [sys.executable, "-m", "llm_grpc.cli.main", "serve", *ours, *flags]


READY = re.compile(r"serving llm_grpc\.v1\.LLMService on ([\w.\[\]:-]+:\d+)")
"""What the server logs once it answers."""


class ChildServer(NamedTuple):
    """A server that runs."""

    address: str
    pid: int


@contextmanager
def child_server(start_limit_s: float, command: Sequence[str]) -> Iterator[ChildServer]:
    """Start a server and stop it with SIGTERM at the end.

    Raises:
        LLMGrpcError: it did not start in time, or it did not stop with exit code 0.
    """
    # Variables that configure another server must not change this one.
    env = {key: value for key, value in os.environ.items() if not key.startswith("LLM_GRPC_")}
    # A group of its own: Ctrl-C in a terminal goes to all of a group, and we are the one who stops it.
    process = subprocess.Popen(  # noqa: S603 - our own
        command, stderr=subprocess.PIPE, text=True, env=env, process_group=0
    )
    log = _Log(process)
    try:
        yield ChildServer(log.address(start_limit_s), process.pid)
        log.stop(process)
    finally:
        process.kill()
        process.wait()


class _Log:
    """Reads a server's stderr to its end, so that the pipe never fills, and finds the address in it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._tail: deque[str] = deque(maxlen=20)
        self._address: Future[str] = Future()
        self._reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._reader.start()

    def address(self, limit_s: float) -> str:
        """Wait for the line that holds the address."""
        try:
            address = self._address.result(limit_s)
        except FutureTimeoutError:
            address = ""
        if not address:
            raise LLMGrpcError(f"the server did not start: {self._last_lines()}")
        return address

    def stop(self, process: subprocess.Popen[str]) -> None:
        """Ask the server to stop and wait for its end."""
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise LLMGrpcError(f"the server still runs {STOP_LIMIT_S:g} s after SIGTERM") from None
        if code != 0:
            raise LLMGrpcError(f"the server stopped with exit code {code}: {self._last_lines()}")

    def _read(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                self._tail.append(line)
                if (found := READY.search(line)) and not self._address.done():
                    self._address.set_result(found[1])
        if not self._address.done():
            self._address.set_result("")

    def _last_lines(self) -> str:
        return "".join(self._tail) or "it printed nothing"
