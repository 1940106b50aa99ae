"""Whatever bytes come, what goes back is an answer or a clean status."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias, cast

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rpc.process import ServerProcess
from tests.rpc.recorded import PROMPT, Recorded, messages_of, recorded

CLEAN = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""What a request may be refused with that a sound server does not serve."""

TIMEOUT_S = 30.0

MAX_DEPTH = 3
"""Of messages in messages: those of a Struct have no end."""

Unary: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
Streaming: TypeAlias = "grpc.UnaryStreamMultiCallable[bytes, bytes]"


@pytest.fixture(scope="module")
def channel(embedded: ServerProcess) -> Iterator[grpc.Channel]:
    with embedded.channel() as channel:
        yield channel
        # It serves as before.
        generate: Unary = channel.unary_unary("/llm_grpc.v1.LLMService/GenerateText")
        assert generate(recorded()[0].data, timeout=TIMEOUT_S)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[Recorded, bytes]:
    """A recorded request whose bytes were changed, cut, repeated, or mixed with another's, some times."""
    request = draw(st.sampled_from(recorded()))
    data = request.data
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, len(data)))
        other = draw(st.sampled_from(recorded())).data
        new = draw(st.sampled_from((b"", data[at:end] * 2)) | st.binary(min_size=1, max_size=6))
        data = draw(st.sampled_from((data[:at] + new + data[end:], data + other)))
    return request, data


_NUMBERS = (-(2**31), -101, -1, 0, 1, 2, 16, 17, 20, 21, 256, 1023, 1024, 2**31 - 1)
_FLOATS = (-math.inf, -2.1, -1e-30, 0.0, 1e-30, 0.5, 1.0, 2.0, 100.0, 1e30, math.inf, math.nan)
_TEXTS = (
    "",
    "a",
    "é😀",
    "\0",
    "x" * 300,
    "{",
    '{"type": "integer"}',
    "[a-z]{2}",
    'start: "a"',
    "embedded",
    PROMPT,
)


@st.composite
def messages(draw: st.DrawFn, kind: Any, depth: int = 0) -> Message:
    """A message with some fields, whatever their values: those at borders above all."""
    message = message_factory.GetMessageClass(kind)()
    for field in draw(st.lists(st.sampled_from([*kind.fields]), max_size=5)) if kind.fields else ():
        if field.message_type is None:
            _set(message, field, draw(st.lists(_values(field), min_size=1, max_size=3)))
        elif depth < MAX_DEPTH and not field.message_type.GetOptions().map_entry:
            inner = draw(messages(field.message_type, depth + 1))
            into = getattr(message, field.name)
            (into.add() if field.is_repeated else into).CopyFrom(inner)
    return message


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.integers(-1, 7)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.sampled_from(_FLOATS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        is_bytes = field.type == FieldDescriptor.TYPE_BYTES
        return st.binary(max_size=4) if is_bytes else st.sampled_from(_TEXTS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    is_unsigned = field.cpp_type == FieldDescriptor.CPPTYPE_UINT64
    return st.sampled_from(_NUMBERS).map(abs if is_unsigned else int)


def _set(message: Message, field: FieldDescriptor, values: list[Any]) -> None:
    if field.is_repeated:
        getattr(message, field.name).extend(values)
    else:
        setattr(message, field.name, values[0])


_METHODS = sorted({each.method for each in recorded()})


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method and a request that has the right shape, and nothing else right for sure."""
    method = draw(st.sampled_from(_METHODS))
    data = draw(st.sampled_from([b"", *(each.data for each in recorded() if each.method == method)]))
    added = draw(messages(messages_of(method)[0]().DESCRIPTOR))
    return f"/llm_grpc.v1.{method}", data + added.SerializeToString()


def _refusal(channel: grpc.Channel, method: str, data: bytes) -> grpc.RpcError | None:
    call: Streaming = channel.unary_stream(method)
    try:
        for _ in call(data, timeout=TIMEOUT_S):
            pass
    except grpc.RpcError as error:
        return error
    return None


def _check_that_it_is_clean(channel: grpc.Channel, method: str, data: bytes) -> None:
    error = _refusal(channel, method, data)
    if error is None:
        return
    call = cast("grpc.Call", error)
    assert call.code() in CLEAN, (call.code(), call.details())
    status = rpc_status.from_call(call)
    assert status is not None, call.details()
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason
    assert info.domain


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations())
def test_mutated_requests(channel: grpc.Channel, mutated: tuple[Recorded, bytes]) -> None:
    request, data = mutated
    _check_that_it_is_clean(channel, request.path, data)


@pytest.mark.slow
@settings(max_examples=6_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations())
def test_many_mutated_requests(channel: grpc.Channel, mutated: tuple[Recorded, bytes]) -> None:
    request, data = mutated
    _check_that_it_is_clean(channel, request.path, data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls())
def test_any_fields(channel: grpc.Channel, called: tuple[str, bytes]) -> None:
    _check_that_it_is_clean(channel, *called)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=6_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls())
def test_many_of_any_fields(channel: grpc.Channel, called: tuple[str, bytes]) -> None:
    _check_that_it_is_clean(channel, *called)
