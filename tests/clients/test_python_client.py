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
from llm_grpc.client.options import GenerateOptions
from llm_grpc.v1 import llm_pb2
from tests.clients.fake_server import LIMIT_S, FakeLLM, bad_request, error_info, retry_info, serving

Do = Callable[..., Any]

ITERATED = {"stream", "list_models"}
"""Methods whose result is iterated."""


def sync_do(
    address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    with Client(address, **(client or {})) as connection:
        result = getattr(connection, method)(*args, **kwargs)
        return list(result) if method in ITERATED else result


def async_do(
    address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    async def run() -> Any:
        async with AsyncClient(address, **(client or {})) as connection:
            result = getattr(connection, method)(*args, **kwargs)
            return [item async for item in result] if method in ITERATED else await result

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


EVERYTHING: dict[str, Any] = {
    "max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.25, "typical_p": 0.75,
    "repetition_penalty": 1.5, "presence_penalty": -0.5, "frequency_penalty": 0.0,
    "logit_bias": {7: -100.0, 0: 2.5}, "allowed_token_ids": [1, 2], "banned_token_ids": (3,),
    "seed": 2**64 - 1, "n": 3, "stop": ["\n", "END"], "stop_token_ids": [4], "include_stop": True,
    "min_tokens": 2, "ignore_eos": True, "regex": "a+", "tokens": True, "logprobs": True, "top_logprobs": 2,
    "token_text": True, "prompt_logprobs": True, "prompt_top_logprobs": 1, "prompt_tokens": True,
    "echo": True, "timing": True, "receipt": True, "truncate_prompt_tokens": 9, "cache_disabled": True,
    "cache_salt": "s", "model": "m", "adapter": "a", "request_id": "r", "priority": -3,
}  # fmt: skip


def test_every_option_has_its_field(do: Do, fake: FakeLLM, address: str) -> None:
    one_of = {"json_schema", "json_object", "grammar", "choice"}
    assert EVERYTHING.keys() | one_of == GenerateOptions.__optional_keys__
    do(address, "generate", "hello", **EVERYTHING)
    (request,) = fake.requests
    assert request == llm_pb2.GenerateTextRequest(
        prompt="hello",
        max_tokens=5,
        model="m",
        sampling=llm_pb2.Sampling(
            temperature=0, top_p=0.5, top_k=3, seed=2**64 - 1, min_p=0.25, typical_p=0.75,
            repetition_penalty=1.5, presence_penalty=-0.5, frequency_penalty=0,
            logit_bias={7: -100, 0: 2.5}, allowed_token_ids=[1, 2], banned_token_ids=[3], n=3,
        ),
        stopping=llm_pb2.Stopping(
            stop_strings=["\n", "END"], stop_token_ids=[4], include_stop=True, min_tokens=2, ignore_eos=True
        ),
        constraint=llm_pb2.Constraint(regex="a+"),
        response_options=llm_pb2.ResponseOptions(
            tokens=True, logprobs=True, top_logprobs=2, token_text=True, prompt_logprobs=True,
            prompt_top_logprobs=1, prompt_tokens=True, echo=True, timing=True, receipt=True,
        ),
        request_id="r",
        priority=-3,
        adapter="a",
        truncate_prompt_tokens=9,
        cache=llm_pb2.Cache(disabled=True, salt="s"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ({"json_schema": '{"type": "null"}'}, llm_pb2.Constraint(json_schema='{"type": "null"}')),
        ({"json_schema": {"type": "null"}}, llm_pb2.Constraint(json_schema='{"type": "null"}')),
        ({"json_schema": {}}, llm_pb2.Constraint(json_schema="{}")),
        ({"json_schema": ""}, llm_pb2.Constraint(json_schema="")),
        ({"json_object": True}, llm_pb2.Constraint(json_object=True)),
        ({"grammar": "start: /a/"}, llm_pb2.Constraint(grammar="start: /a/")),
        ({"choice": ("x", "y")}, llm_pb2.Constraint(choice=llm_pb2.Choice(choices=["x", "y"]))),
        ({"choice": ()}, llm_pb2.Constraint(choice=llm_pb2.Choice())),
        ({"json_object": False, "regex": None}, None),
    ],
    ids=str,
)
def test_a_constraint_is_one_of_several(
    do: Do, fake: FakeLLM, address: str, options: dict[str, Any], constraint: llm_pb2.Constraint | None
) -> None:
    do(address, "generate", "hello", **options)
    (request,) = fake.requests
    assert request == llm_pb2.GenerateTextRequest(prompt="hello", constraint=constraint)


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


def test_list_models_reads_every_page_and_get_server_info(do: Do, fake: FakeLLM, address: str) -> None:
    assert [model.name for model in do(address, "list_models")] == ["model-0", "model-1", "model-2"]
    assert fake.pages == [0, 1, 2]
    info = do(address, "get_server_info")
    assert (info.version, info.default_model) == ("1.2.3", "model-1")


def test_a_page_is_asked_for_when_its_models_are(fake: FakeLLM, address: str) -> None:
    with Client(address) as client:
        models = client.list_models()
        assert fake.pages == []
        assert next(models).name == "model-0"
        assert fake.pages == [0]


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
    with pytest.raises(TypeError, match="choice is a sequence"):
        do(address, "generate", "hello", choice="yes")
    with pytest.raises(TypeError, match="banned_token_ids: a value does not fit"):
        do(address, "generate", "hello", banned_token_ids=["x"])
    with pytest.raises(ValueError, match="logit_bias: an entry does not fit"):
        do(address, "generate", "hello", logit_bias={2**31: 1.0})
    with pytest.raises(ValueError, match="one of json_schema and regex may be given"):
        do(address, "generate", "hello", regex="a", json_schema={})
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
