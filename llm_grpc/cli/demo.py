from __future__ import annotations

import json
import time
from importlib import resources

from llm_grpc.cli.child_server import child_server, serve_command
from llm_grpc.client.errors import LLMError, Unavailable
from llm_grpc.client.sync_client import Client
from llm_grpc.errors import LLMGrpcError

START_LIMIT_S = 60.0


def demo() -> int:
    """Start a server on the embedded model, show one prompt of each task, and stop the server.

    Each answer is shown twice: from GenerateText, and token by token from StreamGenerateText.
    """
    with child_server(START_LIMIT_S, serve_command()) as server, Client(server.address) as client:
        print(f"The server listens on {server.address}.\n")
        _wait_until_serving(client)
        for item in _items():
            try:
                _show(client, item["task"], item["prompt"])
            except LLMError as error:
                raise LLMGrpcError(f"the prompt of {item['task']} failed: {error}") from error
    print("The server has stopped cleanly.")
    return 0


def _items() -> list[dict[str, str]]:
    """One held-out item of each task; a test holds them equal to those of the model's training script."""
    text = resources.files("llm_grpc.cli").joinpath("demo.json").read_text(encoding="utf-8")
    items: list[dict[str, str]] = json.loads(text)
    return items


def _wait_until_serving(client: Client) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while _status(client) != "SERVING":
        if time.monotonic() > deadline:
            raise LLMGrpcError(f"the server is not SERVING after {START_LIMIT_S:g} s")
        time.sleep(0.05)


def _status(client: Client) -> str:
    try:
        return client.health()
    except Unavailable as error:
        return str(error)


def _show(client: Client, task: str, prompt: str) -> None:
    print(f"── {task}\nprompt  {_indented(prompt)}")
    unary = client.generate(prompt).generated_text
    print(f"unary   {_indented(unary)}\nstream  ", end="", flush=True)
    deltas = []
    for message in client.stream(prompt):
        deltas.append(message.generated_text)
        print(_indented(message.generated_text), end="", flush=True)
    print("\n")
    if "".join(deltas) != unary:
        raise LLMGrpcError(f"the stream of {task} is not the unary answer: this is a bug")


def _indented(text: str) -> str:
    return text.replace("\n", "\n        ")
