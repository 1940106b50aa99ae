"""Bad input ends with a status that names field, value and limit, and leaves nothing behind."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from llm_grpc.original import llm_service_pb2, llm_service_pb2_grpc
from llm_grpc.server.identity import Identity
from llm_grpc.v1 import llm_pb2_grpc, model_pb2, model_pb2_grpc
from llm_grpc.v1.llm_pb2 import Cache, Sampling, Stopping
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.conftest import Serve
from tests.rpc.models import CONTEXT_TOKENS
from tests.unit.scripted_runner import ScriptedRunner

LIMIT = CONTEXT_TOKENS - 1
INVALID = grpc.StatusCode.INVALID_ARGUMENT

BAD_FIELDS: list[tuple[Request, str, str]] = [
    (Request(), "prompt", "must not be empty"),
    (
        Request(prompt="a" * CONTEXT_TOKENS),
        "prompt",
        f"has {CONTEXT_TOKENS} tokens, and the limit is {LIMIT}",
    ),
    (Request(prompt="a", prompt_token_ids=[1]), "prompt_token_ids", "must be empty where there is a prompt"),
    (
        Request(prompt_token_ids=[1] * CONTEXT_TOKENS),
        "prompt_token_ids",
        f"has {CONTEXT_TOKENS} tokens, and the limit is {LIMIT}",
    ),
    (
        Request(prompt_token_ids=[0, 256, 5, 257, -1]),
        "prompt_token_ids[3]",
        "is 257, and must be 0 to 256",
    ),
    (Request(prompt_token_ids=[-1]), "prompt_token_ids[0]", "is -1, and must be 0 to 256"),
    (
        Request(prompt="a", cache=Cache(salt="é" * 128 + "x")),
        "cache.salt",
        "has 257 bytes of UTF-8, and the limit is 256",
    ),
    (Request(prompt="a", max_tokens=-1), "max_tokens", f"is -1, and must be 0 to {LIMIT}"),
    (Request(prompt="a", max_tokens=2**31 - 1), "max_tokens", f"is 2147483647, and must be 0 to {LIMIT}"),
    (Request(prompt="a", temperature=-0.5), "temperature", "is -0.5, and must be 0 to 2"),
    (Request(prompt="a", temperature=2.0000002), "temperature", "is 2.00000024, and must be 0 to 2"),
    (Request(prompt="a", temperature=2.01), "temperature", "is 2.01, and must be 0 to 2"),
    (Request(prompt="a", temperature=math.nan), "temperature", "is nan, and must be 0 to 2"),
    (Request(prompt="a", temperature=math.inf), "temperature", "is inf, and must be 0 to 2"),
    (Request(prompt="a", temperature=1e30), "temperature", "is 1e+30, and must be 0 to 2"),
    (
        Request(prompt="a", sampling=Sampling(temperature=3)),
        "sampling.temperature",
        "is 3, and must be 0 to 2",
    ),
    (
        Request(prompt="a", sampling=Sampling(top_p=0)),
        "sampling.top_p",
        "is 0, and must be above 0 and at most 1",
    ),
    (Request(prompt="a", sampling=Sampling(top_p=math.nan)), "sampling.top_p", "is nan, and must be above 0"),
    (Request(prompt="a", sampling=Sampling(top_k=-1)), "sampling.top_k", "is -1, and must be 0 or more"),
    (
        Request(prompt="a", sampling=Sampling(n=2)),
        "sampling.n",
        "is 2, and more than 1 needs a temperature above 0: sampling.temperature is 0",
    ),
    (
        Request(prompt="a", sampling=Sampling(logit_bias={5: math.nan})),
        "sampling.logit_bias[5]",
        "is nan, and must be -100 to 100",
    ),
    (
        Request(prompt="a", max_tokens=3, stopping=Stopping(min_tokens=4)),
        "stopping.min_tokens",
        "is 4, and must be 0 to max_tokens, which is 3",
    ),
    (
        Request(prompt="a", stopping=Stopping(stop_strings=["x", ""])),
        "stopping.stop_strings[1]",
        "has 0 bytes",
    ),
    (
        Request(prompt="a", stopping=Stopping(stop_strings=["é" * 129])),
        "stopping.stop_strings[0]",
        "has 258 bytes",
    ),
    (
        Request(prompt="a", stopping=Stopping(stop_strings="abcdefghijklmnopq")),
        "stopping.stop_strings",
        "17 entries",
    ),
]


def details(error: grpc.aio.AioRpcError, kind: type[Any]) -> Any:
    """The detail of that kind among the rich details of an error."""
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    message = kind()
    found = [detail for detail in status.details if detail.Is(kind.DESCRIPTOR)]
    assert found, f"no {kind.DESCRIPTOR.name} in {status}"
    any_pb2.Any.Unpack(found[0], message)
    return message


async def send_bytes(channel: grpc.aio.Channel, method: str, data: bytes) -> bytes:
    """Call a method with any bytes as its request."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return await call(data, timeout=30)


@pytest.mark.parametrize(("request_", "field", "problem"), BAD_FIELDS, ids=lambda value: str(value)[:40])
async def test_a_bad_field_is_named(serve: Serve, request_: Request, field: str, problem: str) -> None:
    async with serve(ScriptedRunner()) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.GenerateText(request_, timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await stub.StreamGenerateText(request_, timeout=30).read()
        for error in (unary.value, streamed.value):
            assert error.code() is INVALID
            violation = details(error, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == field
            assert problem in violation.description
            info = details(error, error_details_pb2.ErrorInfo)
            too_long = field in {"prompt", "prompt_token_ids"} and "tokens" in problem
            assert info.reason == ("PROMPT_TOO_LONG" if too_long else "INVALID_PARAMETER")
            assert info.domain == "llm-grpc"
        assert server.admission.held == 0


@pytest.mark.parametrize("field", ["prompt", "max_tokens", "temperature"])
async def test_the_original_service_refuses_alike(serve: Serve, field: str) -> None:
    bad = {"prompt": "", "max_tokens": -1, "temperature": math.nan}
    values: dict[str, Any] = {"prompt": "a", field: bad[field]}
    async with serve(ScriptedRunner()) as (_, channel):
        stub = llm_service_pb2_grpc.LLMServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GenerateText(llm_service_pb2.TextGenerationRequest(**values), timeout=30)
        assert error.value.code() is INVALID
        assert details(error.value, error_details_pb2.BadRequest).field_violations[0].field == field


@pytest.mark.parametrize("method", ["/llm_grpc.v1.LLMService/GenerateText", "/LLMService/GenerateText"])
@pytest.mark.parametrize(
    "data",
    [b"\x0a\x02\xff\xfe", b"\x0a\xff", b"\x0a\x05ab", b"\xff" * 64],
    ids=["utf8", "tag", "short", "junk"],
)
async def test_bytes_that_do_not_parse(serve: Serve, method: str, data: bytes) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await send_bytes(channel, method, data)
        assert error.value.code() is INVALID
        assert details(error.value, error_details_pb2.ErrorInfo).reason == "MALFORMED_MESSAGE"


async def test_a_message_above_the_size_cap(serve: Serve) -> None:
    async with serve(ScriptedRunner(), server={"max_message_bytes": 2048}) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GenerateText(Request(prompt="a" * 4096), timeout=30)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2048" in (error.value.details() or "")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\xaa\x01\x00", "request.21"),
        (b"\x2a\x03\xa8\x01\x01", "sampling.21"),
        (b"\x32\x03\xa8\x01\x01", "stopping.21"),
        (b"\x42\x03\xa8\x01\x01", "response_options.21"),
        (b"\x72\x03\xa8\x01\x01", "cache.21"),
    ],
)
async def test_a_field_of_a_later_version_is_refused(serve: Serve, data: bytes, field: str) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await send_bytes(channel, "/llm_grpc.v1.LLMService/GenerateText", b"\x0a\x01a" + data)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert error.value.details() == f"{field}: this version knows no such field"
        assert details(error.value, error_details_pb2.ErrorInfo).reason == "UNSUPPORTED_PARAMETER"


async def test_an_unknown_model(serve: Serve) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as asked:
            await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(
                Request(prompt="a", model="other"), timeout=30
            )
        request = model_pb2.GetModelRequest(name="other")
        with pytest.raises(grpc.aio.AioRpcError) as described:
            await model_pb2_grpc.ModelServiceStub(channel).GetModel(request, timeout=30)
        for error in (asked.value, described.value):
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert details(error, error_details_pb2.ErrorInfo).reason == "MODEL_NOT_FOUND"
            assert "'other'" in (error.details() or "")


class BrokenAuthenticator:
    """Fails in a way that nobody foresaw."""

    async def authenticate(self, metadata: object, peer: str) -> Identity:
        raise KeyError("a secret from the inside")


async def test_an_unexpected_exception_says_nothing_of_the_inside(serve: Serve) -> None:
    async with serve(ScriptedRunner(), authenticator=BrokenAuthenticator()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(Request(prompt="a"), timeout=30)
        assert error.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in repr(error.value)
