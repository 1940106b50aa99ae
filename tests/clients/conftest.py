from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.fake_server import FakeLLM, serving


@pytest.fixture
def fake() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def address(fake: FakeLLM) -> Iterator[str]:
    with serving(fake) as bound:
        yield bound
