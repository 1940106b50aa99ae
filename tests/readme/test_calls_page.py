"""The code of docs/calls.md runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_grpc.client import Client, LLMError
from tests.readme.page import blocks
from tests.rpc.process import ServerProcess

PAGE = Path(__file__).parents[2] / "docs/calls.md"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with ServerProcess() as server, Client(server.address) as client:
        yield client


def test_the_batch(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks(PAGE, "python")[0], {"client": client, "LLMError": LLMError})
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines() if line) >= ["0", "1"]


def test_the_scores(client: Client) -> None:
    names: dict[str, Any] = {"client": client}
    exec(blocks(PAGE, "python")[1], names)
    assert len(names["scores"]) == 2
    assert all(score.logprob < 0 for score in names["scores"])
