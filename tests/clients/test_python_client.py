"""The two Python clients against a server that the test scripts: the same behaviour from both."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from llm_grpc.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    LLMError,
    Unavailable,
)
from llm_grpc.client.channel import channel_options, service_config
from tests.clients.fake_server import LIMIT_S, FakeLLM, bad_request, error_info, retry_info, serving

Do = Callable[..., Any]


def sync_do(
    address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    with Client(address, **(client or {})) as connection:
        result = getattr(connection, method)(*args, **kwargs)
        return list(result) if method == "stream" else result


def async_do(
    address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    async def run() -> Any:
        async with AsyncClient(address, **(client or {})) as connection:
            result = getattr(connection, method)(*args, **kwargs)
            return [item async for item in result] if method == "stream" else await result

    return asyncio.run(run())


@pytest.fixture(params=[sync_do, async_do], ids=["sync", "async"])
def do(request: pytest.FixtureRequest) -> Do:
    chosen: Do = request.param
    return chosen


def test_generate_sends_what_was_asked_and_returns_the_message(do: Do, fake: FakeLLM, address: str) -> None:
    asked = {"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 3, "seed": 2**64 - 1, "model": "m"}
    asked |= {"ignore_eos": True, "tokens": True, "cache_disabled": True, "cache_salt": "s", "adapter": "a"}
    reply = do(address, "generate", "hello", stop=["\n", "END"], **asked)
    assert reply.generated_text == "one two"
    (request,) = fake.requests
    assert (request.prompt, request.max_tokens, request.model) == ("hello", 5, "m")
    assert request.sampling.HasField("temperature")
    assert request.sampling.temperature == 0.0
    assert (request.sampling.top_p, request.sampling.top_k, request.sampling.seed) == (0.5, 3, 2**64 - 1)
    assert list(request.stopping.stop_strings) == ["\n", "END"]
    assert (request.stopping.ignore_eos, request.response_options.tokens) == (True, True)
    assert (request.cache.disabled, request.cache.salt, request.adapter) == (True, "s", "a")


def test_a_prompt_may_be_token_ids(do: Do, fake: FakeLLM, address: str) -> None:
    do(address, "generate", [3, 1, 2])
    (request,) = fake.requests
    assert request.SerializeToString() == type(request)(prompt_token_ids=[3, 1, 2]).SerializeToString()
    for wrong, kind in (([1, 2**31], ValueError), ([1, "x"], TypeError)):
        with pytest.raises(kind, match="prompt_token_ids: a value does not fit the field"):
            do(address, "generate", wrong)


def test_what_is_not_asked_for_is_not_sent(do: Do, fake: FakeLLM, address: str) -> None:
    do(address, "generate", "hello")
    (request,) = fake.requests
    assert request.SerializeToString() == type(request)(prompt="hello").SerializeToString()


def test_stream_yields_the_deltas(do: Do, address: str) -> None:
    messages = do(address, "stream", "hello")
    assert [m.generated_text for m in messages] == ["one", " two"]


def test_get_model_and_health(do: Do, address: str) -> None:
    assert do(address, "get_model").name == "default"
    assert do(address, "get_model", "other").name == "other"
    assert do(address, "health") == "SERVING"
    assert do(address, "health", "live") == "NOT_SERVING"
    with pytest.raises(InvalidRequest) as caught:
        do(address, "health", "nobody")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", ["generate", "stream"])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_server_that_refuses_twice_is_asked_three_times(
    do: Do, fake: FakeLLM, address: str, code: grpc.StatusCode, method: str
) -> None:
    fake.refuse(code, times=2, pushback_ms=1)
    do(address, method, "hello")
    assert len(fake.requests) == 3
    assert fake.metadata[2]["grpc-previous-rpc-attempts"] == "2"


def test_retries_end_after_four_attempts(do: Do, fake: FakeLLM, address: str) -> None:
    fake.refuse(grpc.StatusCode.UNAVAILABLE, times=9)
    with pytest.raises(Unavailable):
        do(address, "generate", "hello")
    assert len(fake.requests) == 4


def test_the_servers_pushback_is_obeyed(do: Do, fake: FakeLLM, address: str) -> None:
    fake.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=-1)  # negative: do not try again
    with pytest.raises(Unavailable):
        do(address, "generate", "hello")
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    "code", [c for c in grpc.StatusCode if c.name not in {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}]
)
def test_no_other_code_is_retried(do: Do, fake: FakeLLM, address: str, code: grpc.StatusCode) -> None:
    fake.refuse(code)
    with pytest.raises(LLMError) as caught:
        do(address, "generate", "hello")
    assert caught.value.code is code
    assert len(fake.requests) == 1


def test_a_stream_that_has_begun_is_not_retried(do: Do, fake: FakeLLM, address: str) -> None:
    fake.refuse(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(Unavailable):
        do(address, "stream", "hello", client={"metadata": (("refuse-late", "1"),)})
    assert len(fake.requests) == 1


def test_error_details_are_decoded(do: Do, fake: FakeLLM, address: str) -> None:
    fake.details = [error_info("INVALID_PARAMETER"), bad_request("top_p", "is 2, above 1")]
    fake.refuse(grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(InvalidRequest) as caught:
        do(address, "generate", "hello")
    error = caught.value
    assert (error.reason, error.message, error.retry_after_s) == ("INVALID_PARAMETER", "refused", None)
    assert error.field_violations == (FieldViolation("top_p", "is 2, above 1"),)
    assert isinstance(error.__cause__, grpc.RpcError)
    assert str(error) == "INVALID_ARGUMENT (INVALID_PARAMETER): refused"


def test_retry_info_is_decoded(do: Do, fake: FakeLLM, address: str) -> None:
    fake.details = [error_info("QUEUE_FULL"), retry_info(1, 500_000_000)]
    fake.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=-1)
    with pytest.raises(Unavailable) as caught:
        do(address, "generate", "hello")
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 1.5)


def test_every_call_has_a_deadline(do: Do, fake: FakeLLM, address: str) -> None:
    for method in ("generate", "stream"):
        do(address, method, "hello")
        do(address, method, "hello", client={"timeout_s": 1000.0})
        do(address, method, "hello", timeout_s=5000.0)
    # The wire format of a long timeout is coarse, and rounds up.
    expected = [pytest.approx(60, rel=0.3), pytest.approx(1000, rel=0.3), pytest.approx(5000, rel=0.3)] * 2
    assert fake.time_remaining == expected


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_the_deadline_ends_the_call_on_both_sides(do: Do, fake: FakeLLM, address: str, method: str) -> None:
    fake.hang = True
    with pytest.raises(DeadlineExceeded):
        do(address, method, "hello", timeout_s=0.3)
    assert fake.ended.wait(LIMIT_S)


def test_nobody_listens(do: Do) -> None:
    with pytest.raises(Unavailable) as caught:
        do("127.0.0.1:1", "generate", "hello")
    assert caught.value.reason == ""


def test_metadata_and_user_agent_go_with_the_call(do: Do, fake: FakeLLM, address: str) -> None:
    do(address, "generate", "hello", client={"metadata": [("tenant", "a")]})
    assert fake.metadata[0]["tenant"] == "a"
    assert str(fake.metadata[0]["user-agent"]).startswith("llm-grpc-client/")


def test_values_that_no_field_holds(do: Do, address: str) -> None:
    with pytest.raises(ValueError, match="seed: -1 does not fit"):
        do(address, "generate", "hello", seed=-1)
    with pytest.raises(ValueError, match=r"prompt: .* does not fit"):
        do(address, "generate", "\udcff")
    with pytest.raises(TypeError, match="max_tokens: 'x' does not fit"):
        do(address, "generate", "hello", max_tokens="x")
    with pytest.raises(TypeError, match="stop is a sequence"):
        do(address, "generate", "hello", stop="END")
    with pytest.raises(TypeError, match="unknown options: top_q"):
        do(address, "generate", "hello", top_q=1)


@pytest.mark.parametrize("leave", ["break", "with", "drop", "close"])
def test_leaving_a_stream_cancels_the_call(fake: FakeLLM, address: str, leave: str) -> None:
    fake.hang = True
    with Client(address) as client:
        stream = client.stream("hello")
        if leave == "break":
            for _ in stream:
                break
            del stream
        elif leave == "with":
            with stream:
                next(stream)
            assert list(stream) == []
        elif leave == "drop":
            next(stream)
            del stream
        else:
            next(stream)
            stream.close()
            assert list(stream) == []
        assert fake.ended.wait(LIMIT_S)


@pytest.mark.parametrize("leave", ["break", "with", "drop", "close", "cancelled task"])
async def test_leaving_an_async_stream_cancels_the_call(fake: FakeLLM, address: str, leave: str) -> None:
    fake.hang = True
    async with AsyncClient(address) as client:
        stream = client.stream("hello")
        if leave == "break":
            async for _ in stream:
                break
            del stream
        elif leave == "with":
            async with stream:
                await anext(stream)
            assert [m async for m in stream] == []
        elif leave == "drop":
            await anext(stream)
            del stream
        elif leave == "close":
            await anext(stream)
            stream.close()
            assert [m async for m in stream] == []
        else:
            await anext(stream)
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await asyncio.to_thread(fake.ended.wait, LIMIT_S)


def test_calls_go_to_all_addresses_of_a_name(do: Do) -> None:
    first, second = FakeLLM(), FakeLLM()
    with serving(first) as one, serving(second) as two, Client(f"ipv4:{one},{two}") as client:
        for _ in range(10_000):  # until the second connection stands too
            client.generate("hello")
            if first.requests and second.requests:
                break
        assert first.requests
        assert second.requests


def test_the_service_config_retries_two_codes() -> None:
    config = json.loads(service_config())
    (method,) = config["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    assert method["retryPolicy"]["maxAttempts"] <= 5  # gRPC's cores cap it there
    assert {"service": "llm_grpc.v1.LLMService"} in method["name"]
    assert {"service": "LLMService"} in method["name"]


def test_a_callers_option_replaces_ours() -> None:
    options = channel_options([("grpc.keepalive_time_ms", 1), ("grpc.other", "x")])
    assert ("grpc.keepalive_time_ms", 1) in options
    assert ("grpc.other", "x") in options
    assert len(options) == len(dict(options))


def test_the_client_imports_nothing_of_the_server() -> None:
    code = "import sys, llm_grpc.client; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("llm_grpc.")}
    assert all(name.startswith(("llm_grpc.client", "llm_grpc.v1")) for name in ours)
    assert not {"numpy", "onnxruntime", "pydantic", "cyclopts", "yaml", "tokenizers"} & set(loaded)
