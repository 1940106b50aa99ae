"""How many tokens the cache has memory for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llm_grpc.config import EngineConfig
from llm_grpc.errors import StartupError
from llm_grpc.kv_budget import AUTO_SHARE, kv_budget, num_blocks
from llm_grpc.manifest import KvCache

TOKEN_BYTES = 1000


@pytest.mark.parametrize(
    ("asked", "available", "num_tokens"),
    [
        pytest.param(64_000, 10**9, 64, id="asked for"),
        pytest.param(64_999, 10**9, 64, id="whole tokens"),
        pytest.param(64_000, 0, 64, id="asked for is not argued with"),
        pytest.param(10**12, 10**9, 4096, id="no more than the pool"),
        pytest.param(0, 100_000, int(100 * AUTO_SHARE), id="a share of what is available"),
        pytest.param(0, 10**12, 4096, id="no more than the pool by itself"),
        pytest.param(2000, 0, 2, id="a prompt and an answer"),
    ],
)
def test_tokens_that_fit(asked: int, available: int, num_tokens: int) -> None:
    budget = kv_budget(asked, available, TOKEN_BYTES, pool_tokens=4096)
    assert (budget.num_tokens, budget.num_bytes) == (num_tokens, num_tokens * TOKEN_BYTES)


@pytest.mark.parametrize(
    ("asked", "available", "problem"),
    [
        (1999, 10**9, r"^kv_cache_memory is 2.0 KiB, and 2 tokens of its key-value cache need 2.0 KiB$"),
        (0, 100, r"^100 B are available beside the model, and 2 tokens"),
        (0, 0, r"^0 B are available beside the model, and 2 tokens"),
    ],
)
def test_too_little_for_any_request(asked: int, available: int, problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        kv_budget(asked, available, TOKEN_BYTES, pool_tokens=4096)


@pytest.mark.parametrize(
    ("asked", "available", "most", "expected"),
    [
        pytest.param(0, 64_000, None, 4, id="what is available"),
        pytest.param(32_000, 64_000, None, 2, id="asked for"),
        pytest.param(96_000, 64_000, None, 6, id="asked for is not argued with"),
        pytest.param(0, 63_999, None, 3, id="whole blocks"),
        pytest.param(0, 64_000, 3, 3, id="no more than can be of use"),
    ],
)
def test_blocks_that_fit(asked: int, available: int, most: int | None, expected: int) -> None:
    assert num_blocks(asked, available, TOKEN_BYTES, 16, most) == expected


@pytest.mark.parametrize(
    ("asked", "available", "problem"),
    [
        (15_999, 10**9, r"^kv_cache_memory is 15.6 KiB, and a block of 16 tokens needs 15.6 KiB$"),
        (0, 100, r"^100 B are left for keys and values, and a block of 16 tokens needs 15.6 KiB$"),
    ],
)
def test_too_little_for_a_block(asked: int, available: int, problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        num_blocks(asked, available, TOKEN_BYTES, 16)


@pytest.mark.parametrize(
    ("dtype", "token_bytes"), [("float32", 480), ("float16", 240), ("bfloat16", 240), ("int8", 120)]
)
def test_a_token_has_a_key_and_a_value_in_every_layer(dtype: str, token_bytes: int) -> None:
    cache = KvCache.model_validate({"num_layers": 3, "num_heads": 4, "head_dim": 5, "dtype": dtype})
    assert cache.token_bytes == token_bytes


@pytest.mark.parametrize(("value", "size"), [("8GiB", 2**33), ("500 MB", 5 * 10**8), ("0", 0), (77, 77)])
def test_a_size_or_a_number_of_bytes(value: str | int, size: int) -> None:
    assert EngineConfig(kv_cache_memory=value).kv_cache_memory == size  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["much", "-1", -1, 1.5, ""])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValidationError, match="kv_cache_memory"):
        EngineConfig(kv_cache_memory=value)  # type: ignore[arg-type]
