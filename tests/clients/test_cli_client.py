"""`llm-grpc generate` and `llm-grpc health` against a server that the test scripts."""

from __future__ import annotations

import io
import subprocess
import sys

import grpc
import pytest

from llm_grpc.cli.main import main
from llm_grpc.cli.server_address import target
from tests.clients.fake_server import FakeLLM, bad_request, error_info


@pytest.mark.parametrize("flags", [[], ["--stream"]])
def test_generate_prints_the_text_alone(
    fake: FakeLLM, address: str, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert main(["generate", "hello", "--address", address, *flags]) == 0
    assert capsys.readouterr() == ("one two\n", "")


def test_generate_sends_its_flags(fake: FakeLLM, address: str) -> None:
    values = {
        "max-tokens": 3,
        "temperature": 0,
        "top-p": 0.5,
        "top-k": 2,
        "seed": 7,
        "model": "m",
        "adapter": "a",
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    flags += ["--stop=a", "--stop", "b", "--ignore-eos"]
    main(["generate", "hello", "--address", address, *flags])
    main(["generate", "hello", "--address", address])
    asked, plain = fake.requests
    assert (asked.max_tokens, asked.model, asked.adapter) == (3, "m", "a")
    assert list(asked.stopping.stop_strings) == ["a", "b"]
    assert asked.stopping.ignore_eos
    sampling = asked.sampling
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 2, 7)
    assert plain.SerializeToString() == type(plain)(prompt="hello").SerializeToString()


def test_generate_reads_standard_input(fake: FakeLLM, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert main(["generate", "-", "--address", address]) == 0
    assert main(["generate", "-5 is", "--address", address]) == 0
    assert [r.prompt for r in fake.requests] == ["from a pipe", "-5 is"]


def test_a_failed_call_is_one_line(fake: FakeLLM, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake.details = [error_info("INVALID_PARAMETER"), bad_request("top_p", "is 2, above 1")]
    fake.refuse(grpc.StatusCode.INVALID_ARGUMENT)
    assert main(["generate", "hello", "--top-p", "2", "--address", address]) == 1
    line = "llm-grpc: INVALID_ARGUMENT (INVALID_PARAMETER): refused; top_p: is 2, above 1\n"
    assert capsys.readouterr() == ("", line)


def test_a_value_that_does_not_fit_the_wire_is_one_line(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "hello", "--seed", "-1", "--address", address]) == 1
    assert capsys.readouterr().err.startswith("llm-grpc: seed: -1 does not fit the field")


@pytest.mark.parametrize(
    ("service", "code", "out"),
    [
        (None, 0, "SERVING\n"),
        ("live", 4, "NOT_SERVING\n"),
        ("", 0, "SERVING\n"),
        ("nobody", 1, ""),  # grpc.health.v1 answers NOT_FOUND
    ],
)
def test_health_says_it_with_its_exit_code(
    address: str, capsys: pytest.CaptureFixture[str], service: str | None, code: int, out: str
) -> None:
    flags = [] if service is None else ["--service", service]
    assert main(["health", "--address", address, *flags]) == code
    assert capsys.readouterr().out == out


def test_health_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--address", "127.0.0.1:1"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llm-grpc: no answer from 127.0.0.1:1: UNAVAILABLE")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", ""])
def test_a_probe_in_the_servers_container_finds_it(
    host: str, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = address.rpartition(":")[2]
    # The fake listens on IPv4 alone; what [::] becomes is tested below.
    monkeypatch.setenv("LLM_GRPC_ADDRESS", f"{'0.0.0.0' if host == '[::]' else host}:{port}")
    monkeypatch.setenv("LLM_GRPC_MODEL", "/models/served")
    assert main(["health"]) == 0
    assert main(["generate", "hello"]) == 0
    assert capsys.readouterr().out == "SERVING\none two\n"


def test_settings_of_the_server_are_not_options_of_a_request(
    fake: FakeLLM, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MODEL", "/models/served"), ("TEMPERATURE", "1"), ("MAX_TOKENS", "9")):
        monkeypatch.setenv(f"LLM_GRPC_{name}", value)
    monkeypatch.setenv("LLM_GRPC_GENERATE_TOP_K", "4")
    main(["generate", "hello", "--address", address])
    (request,) = fake.requests
    assert (request.model, request.max_tokens, request.sampling.top_k) == ("", 0, 4)
    assert not request.sampling.HasField("temperature")


def test_the_addresses_in_order_of_precedence(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_GRPC_ADDRESS", "127.0.0.1:1")
    assert main(["health"]) == 3
    monkeypatch.setenv("LLM_GRPC_HEALTH_ADDRESS", address)
    assert main(["health"]) == 0
    assert main(["health", "--address", "127.0.0.1:1"]) == 3


def test_a_reader_that_leaves_is_no_traceback(address: str) -> None:
    command = [sys.executable, "-m", "llm_grpc.cli.main", "health", "--address", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("listen", "call"),
    [
        ("0.0.0.0:50051", "127.0.0.1:50051"),
        ("[::]:50051", "[::1]:50051"),
        (":50051", "localhost:50051"),
        ("10.0.0.7:1", "10.0.0.7:1"),
        ("dns:///llm.svc:50051", "dns:///llm.svc:50051"),
        ("localhost", "localhost"),
    ],
)
def test_an_address_to_listen_on_becomes_one_to_call(listen: str, call: str) -> None:
    assert target(listen) == call
