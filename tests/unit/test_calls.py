"""What a request says about itself as a call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.errors import InvalidParameter
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.server.calls import Call, Calls, only
from llm_grpc.server.identity import Identity, current_identity
from llm_grpc.server.replays import Replays
from llm_grpc.text.text_request import TextRequest
from llm_grpc.v1.llm_pb2 import GenerateTextRequest, GenerateTextResponse


def calls_of(cap: Callable[[Identity], int] = lambda _: 0) -> Calls:
    return Calls(Replays(60.0, 10**6), cap)


async def told(call: Call) -> AsyncGenerator[GenerateTextResponse, None]:
    yield GenerateTextResponse(generated_text=f"{call.priority} {call.cancellation is not None}")


@given(asked=st.integers(-100, 100), cap=st.integers(-100, 100))
async def test_a_priority_counts_up_to_the_callers_cap(asked: int, cap: int) -> None:
    caps = {"alice": cap}
    calls = calls_of(lambda identity: caps[identity.name])
    token = current_identity.set(Identity("alice"))
    try:
        answers = calls.answers("GenerateText", GenerateTextRequest(priority=asked), told)
        assert (await only(answers)).generated_text == f"{min(asked, cap)} False"
    finally:
        current_identity.reset(token)


async def test_only_a_request_with_an_id_can_be_cancelled() -> None:
    calls = calls_of()
    request = GenerateTextRequest(request_id="id", priority=-3)
    assert (await only(calls.answers("GenerateText", request, told))).generated_text == "-3 True"
    assert calls.cancel("id") == 0, "it has ended"


def test_a_request_takes_priority_and_cancellation_of_its_call() -> None:
    request = TextRequest("a", SamplingParams(1), num_sequences=3)
    call = Call("id", -7)
    assert call.asked(request) == TextRequest("a", SamplingParams(1), num_sequences=3, priority=-7)


@pytest.mark.parametrize("count", [0, 2])
async def test_a_unary_method_has_one_response(count: int) -> None:
    async def responses() -> AsyncGenerator[GenerateTextResponse, None]:
        for _ in range(count):
            yield GenerateTextResponse()

    with pytest.raises(ValueError, match="this is a bug: a unary method has"):
        await only(responses())


async def test_bad_fields_are_refused_before_anything_begins() -> None:
    calls = calls_of()
    for request in (GenerateTextRequest(request_id="x" * 129), GenerateTextRequest(priority=101)):
        with pytest.raises(InvalidParameter):
            calls.answers("GenerateText", request, told)
