"""The data plane's address, whole or as a host and a port, by what beats what."""

from __future__ import annotations

from pathlib import Path

import pytest
from cyclopts import CycloptsError

from llm_grpc.cli.main import build_app
from llm_grpc.config import ServerConfig


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ({}, "0.0.0.0:50051"),
        ({"address": "a:1"}, "a:1"),
        ({"host": "127.0.0.1"}, "127.0.0.1:50051"),
        ({"port": 0}, "0.0.0.0:0"),
        ({"host": "b", "port": 2}, "b:2"),
        ({"host": "::1"}, "[::1]:50051"),
        ({"host": "[::]", "port": 3}, "[::]:3"),
        ({"address": "a:1", "port": 2}, "a:2"),
        ({"address": "no-port"}, "no-port"),
    ],
)
def test_the_parts_stand_for_those_of_the_address(said: dict[str, str | int], address: str) -> None:
    assert ServerConfig(**said).data_address == address  # type: ignore[arg-type]


def listens_on(*flags: str) -> str:
    """Where `serve` would listen."""
    _, bound, _ = build_app().parse_args(["serve", *flags], exit_on_error=False, print_error=False)
    server: ServerConfig = bound.arguments.get("server", ServerConfig())
    return server.data_address


@pytest.mark.parametrize(
    ("file", "variables", "flags", "address"),
    [
        ("host: f\nport: 1", {}, (), "f:1"),
        ("host: f\nport: 1", {"ADDRESS": "v:2"}, (), "v:2"),
        ("host: f\nport: 1", {"ADDRESS": "v:2"}, ("--port=3",), "v:3"),
        ("host: f\nport: 1", {"HOST": "v"}, ("--port=3",), "v:3"),
        ("address: f:1", {"HOST": "v", "PORT": "2"}, (), "v:2"),
        ("address: f:1", {"PORT": "2"}, ("--address=g:3",), "g:3"),
        ("port: 1", {"PORT": "tcp://10.0.0.7:50051"}, (), "0.0.0.0:1"),
        ("", {"PORT": "udp://10.0.0.7:50051", "HOST": "v"}, (), "v:50051"),
    ],
)
def test_a_flag_beats_a_variable_and_that_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    variables: dict[str, str],
    flags: tuple[str, ...],
    address: str,
) -> None:
    config = tmp_path / "llm-grpc.yaml"
    config.write_text(file)
    for name, value in variables.items():
        monkeypatch.setenv(f"LLM_GRPC_{name}", value)
    assert listens_on("--config", str(config), *flags) == address


@pytest.mark.parametrize("part", ["host", "port"])
def test_one_source_says_one_of_them(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    with pytest.raises(CycloptsError, match=f"--address and --{part} are both set"):
        listens_on("--address=a:1", f"--{part}=2")
    monkeypatch.setenv("LLM_GRPC_ADDRESS", "a:1")
    monkeypatch.setenv(f"LLM_GRPC_{part.upper()}", "2")
    with pytest.raises(CycloptsError, match=f"LLM_GRPC_ADDRESS and LLM_GRPC_{part.upper()} are both set"):
        listens_on()
