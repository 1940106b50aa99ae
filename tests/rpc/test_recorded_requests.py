"""Bytes that clients have sent mean what they meant, and are served."""

from __future__ import annotations

import json
from typing import TypeAlias

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format
from google.protobuf.message import Message

from tests.rpc.process import HANG_S, ServerProcess
from tests.rpc.recorded import SERVICES, Recorded, messages_of, recorded

RECORDED = recorded()

FIELD_100 = b"\xa0\x06\x01"
LATER = "request.100: this version knows no such field"

REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)

Call: TypeAlias = "grpc.UnaryStreamMultiCallable[bytes, Message]"


@pytest.mark.parametrize("request_", RECORDED, ids=lambda each: each.method)
def test_the_bytes_mean_what_they_meant(request_: Recorded) -> None:
    request = messages_of(request_.method)[0]()
    request.ParseFromString(request_.data)
    assert json_format.MessageToDict(request, preserving_proto_field_name=True) == request_.fields
    assert request.SerializeToString(deterministic=True) == request_.data


def test_every_method_and_every_field_of_a_request_is_recorded() -> None:
    pool = descriptor_pool.Default()
    methods = {
        f"{service}/{method.name}"
        for service in SERVICES
        for method in pool.FindServiceByName(f"llm_grpc.v1.{service}").methods
    }
    assert {each.method for each in RECORDED} == methods
    text = json.dumps([each.fields for each in RECORDED])
    asked = [messages_of(method)[0]().DESCRIPTOR for method in methods]
    nested = [field.message_type for message in asked for field in message.fields if field.message_type]
    ours = {kind.full_name: kind for kind in (*asked, *nested) if kind.file.package == "llm_grpc.v1"}
    missing = {
        f"{kind.name}.{field.name}"
        for kind in ours.values()
        for field in kind.fields
        if f'"{field.name}"' not in text
    }
    assert not missing


@pytest.mark.parametrize("request_", RECORDED, ids=lambda each: each.method)
def test_it_is_served(embedded: ServerProcess, request_: Recorded) -> None:
    """Or refused, where it was."""
    with embedded.channel() as channel:
        call: Call = channel.unary_stream(request_.path, None, messages_of(request_.method)[1]().FromString)
        if request_.is_refused:
            with pytest.raises(grpc.RpcError) as refused:
                list(call(request_.data, timeout=HANG_S))
            assert refused.value.code() in REFUSALS
            return
        answers = list(call(request_.data, timeout=HANG_S))
    assert answers
    assert any(answer.ByteSize() for answer in answers) or request_.method == "LLMService/CancelGeneration"


@pytest.mark.parametrize("request_", {each.method: each for each in reversed(RECORDED)}.values(), ids=str)
def test_a_field_of_a_later_version_is_refused(embedded: ServerProcess, request_: Recorded) -> None:
    """By every method, beside what it serves."""
    with embedded.channel() as channel:
        assert _refusal(channel, request_.path, request_.data + FIELD_100) == LATER


def test_the_operators_plane_refuses_it_too(embedded: ServerProcess) -> None:
    with grpc.insecure_channel(embedded.admin_address) as channel:
        assert _refusal(channel, "/llm_grpc.v1.AdminService/GetLoad", FIELD_100) == LATER


def _refusal(channel: grpc.Channel, path: str, data: bytes) -> str | None:
    call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
    with pytest.raises(grpc.RpcError) as refused:
        list(call(data, timeout=HANG_S))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return refused.value.details()
