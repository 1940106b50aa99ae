"""Whatever bytes come, what goes back is an answer or a clean status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rpc.process import ServerProcess
from tests.rpc.recorded import Recorded, recorded

CLEAN = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""What a request may be refused with that a sound server does not serve."""

TIMEOUT_S = 30.0

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
