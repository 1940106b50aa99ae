"""The process around a server that we start, with small programs in the server's place."""

from __future__ import annotations

import sys

import pytest

from llm_grpc.cli.child_server import child_server, serve_command
from llm_grpc.errors import LLMGrpcError

LIMIT_S = 30.0

READY = "print('INFO x serving llm_grpc.v1.LLMService on 127.0.0.1:4711', file=sys.stderr, flush=True)"
STOP = "signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))"
WAIT = "signal.pause()"


def program(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(("import os, signal, sys", *lines))]


def test_the_address_comes_from_the_log_and_the_server_is_stopped() -> None:
    with child_server(LIMIT_S, program(STOP.format(code=0), READY, WAIT)) as server:
        assert server.address == "127.0.0.1:4711"
        assert server.pid > 0


def test_a_server_that_logs_much_does_not_block() -> None:
    noise = "sys.stderr.write('line\\n' * 100_000)"
    with child_server(LIMIT_S, program(STOP.format(code=0), noise, READY, noise, WAIT)):
        pass


def test_a_server_that_does_not_start_says_why() -> None:
    command = program("sys.exit('llm-grpc: no model')")
    with (
        pytest.raises(LLMGrpcError, match="did not start: llm-grpc: no model"),
        child_server(LIMIT_S, command),
    ):
        raise AssertionError


def test_a_server_that_stops_badly_is_an_error() -> None:
    command = program(STOP.format(code=3), READY, WAIT)
    with pytest.raises(LLMGrpcError, match="exit code 3"), child_server(LIMIT_S, command):
        pass


def test_an_error_inside_ends_the_server_too() -> None:
    with pytest.raises(KeyError), child_server(LIMIT_S, program(READY, WAIT)):
        raise KeyError


def test_variables_of_another_server_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GRPC_MAX_RUNNING", "1")
    seen = "assert not [key for key in os.environ if key.startswith('LLM_GRPC_')]"
    with child_server(LIMIT_S, program(STOP.format(code=0), seen, READY, WAIT)) as server:
        assert server.address


def test_flags_replace_ours() -> None:
    assert serve_command()[4:] == [
        "--address=127.0.0.1:0", "--metrics-address=", "--admin-address=", "--drain-window-s=0"
    ]  # fmt: skip
    flags = ["--metrics-address=127.0.0.1:0", "--drain-window-s", "1"]
    assert serve_command(flags)[4:] == ["--address=127.0.0.1:0", "--admin-address=", *flags]
