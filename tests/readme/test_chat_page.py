"""docs/chat.md is run against the embedded model; its tools are asked for by a client that a test scripts."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_grpc.text import tool_format
from llm_grpc.v1 import chat_pb2, llm_pb2
from tests.readme.page import blocks, commands
from tests.rpc.process import HANG_S, ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "chat.md"
ADDRESS = "localhost:50051"
CHAT, TOOLS, TOKENS = blocks(PAGE, "python")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ServerProcess() as process:
        yield process.address


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, str(PAGE), "exec"), names)


def test_the_conversation_and_its_tokens(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    run(CHAT.replace(ADDRESS, address), names)
    assert "Dublin" in names["answer"].message.content
    assert "Tom" in capsys.readouterr().out
    run(TOKENS.replace(ADDRESS, address), names)
    count, text = capsys.readouterr().out.splitlines()
    assert int(count) > 20
    assert text == "The cat sleeps."


def test_the_commands(tool: Callable[[str], str], address: str) -> None:
    found = commands(PAGE, "grpcurl")
    assert len(found) == 2
    for command in found:
        words = shlex.split(command.replace(ADDRESS, address))
        done = subprocess.run(
            [tool("grpcurl"), *words[1:]], check=False, capture_output=True, text=True, timeout=HANG_S
        )
        assert done.returncode == 0, done.stderr


class Client:
    """Calls a tool, then says what the tool said."""

    def __init__(self) -> None:
        self.asked: list[list[Any]] = []

    def chat(self, messages: list[Any], tools: list[Any]) -> llm_pb2.ChatResponse:
        self.asked.append(list(messages))
        message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT)
        if messages[-1]["role"] == "tool":
            message.content = f"It is {messages[-1]['content']}."
        else:
            message.tool_calls.add(id="x", name=tools[0]["name"], arguments='{"city": "Rome"}')
        return llm_pb2.ChatResponse(message=message)


def test_the_loop_over_calls() -> None:
    names: dict[str, Any] = {}
    run(TOOLS, names)
    client = Client()
    said = names["ask"](client, [{"role": "user", "content": "?"}], lambda name, arguments: name + arguments)
    assert said == 'It is weather{"city": "Rome"}.'
    assert client.asked[1][-1]["tool_call_id"] == "x"


def test_the_table_has_every_format() -> None:
    page = PAGE.read_text().replace("\\|", "|")
    formats = [value for value in vars(tool_format).values() if isinstance(value, tool_format.ToolFormat)]
    assert len(formats) >= 5
    for form in formats:
        assert all(mark in page for mark in (form.begin, form.between, form.arguments)), form
