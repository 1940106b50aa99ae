"""The original contract keeps working, byte for byte: what its users have gets its answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from llm_grpc.v1 import llm_pb2
from tests.rpc.process import HANG_S, ServerProcess

# Literals on purpose: this is what users have, whatever the repository's own files say.
PROTO = """
syntax = "proto3";

service LLMService {
  rpc GenerateText (TextGenerationRequest) returns (TextGenerationResponse) {}
}

message TextGenerationRequest {
  string prompt = 1;
  int32 max_tokens = 2;
  float temperature = 3;
}

message TextGenerationResponse {
  string generated_text = 1;
}
"""

CLIENT = """
import sys
import grpc
import llm_pb2
import llm_pb2_grpc

stub = llm_pb2_grpc.LLMServiceStub(grpc.insecure_channel(sys.argv[1]))
request = llm_pb2.TextGenerationRequest(prompt=sys.argv[2], max_tokens=32, temperature=0.0)
response = stub.GenerateText(request)
assert not [name for name in sys.modules if name.startswith("llm_grpc")]
sys.stdout.write(response.generated_text)
"""

PROMPT = "Translate to French: the black cat"

# prompt, then max_tokens = 32
REQUEST = bytes.fromhex("0a22 5472616e736c61746520746f204672656e63683a2074686520626c61636b20636174 1020")

# the same, temperature = 0.5, sampling {temperature = 0, top_p = 0.5, top_k = 40, seed = 7},
# stopping {stop_strings = ["#"]}
V1_REQUEST = REQUEST + bytes.fromhex("1d0000003f 2a0e 0d00000000 150000003f 1828 2007 3203 0a0123")

ORIGINAL = "/LLMService/GenerateText"
V1 = "/llm_grpc.v1.LLMService/GenerateText"


def send(server: ServerProcess, method: str, request: bytes) -> bytes:
    """The bytes that answer the bytes of a request."""
    with server.channel() as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        answer: bytes = call(request, timeout=HANG_S)
        return answer


def fields(message: bytes) -> list[tuple[int, int, bytes]]:
    """Number, wire type and content of the fields of a message that has length-delimited ones alone."""
    found, at = [], 0
    while at < len(message):
        key, at = varint(message, at)
        assert key & 7 == 2, f"wire type {key & 7} in {message.hex()}"
        size, at = varint(message, at)
        found.append((key >> 3, key & 7, message[at : at + size]))
        at += size
    return found


def varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


@pytest.fixture(scope="session")
def generated_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client of the original contract: stubs that protoc makes of its text, and ten lines around them."""
    directory = tmp_path_factory.mktemp("original_client")
    (directory / "llm.proto").write_text(PROTO)
    (directory / "client.py").write_text(CLIENT)
    out = [f"--{kind}={directory}" for kind in ("proto_path", "python_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", *out, "llm.proto"]
    subprocess.run(command, check=True, timeout=HANG_S)
    return directory / "client.py"


def test_a_client_of_the_original_proto(embedded: ServerProcess, generated_client: Path) -> None:
    command = [sys.executable, str(generated_client), embedded.address, PROMPT]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stdout == llm_pb2.GenerateTextResponse.FromString(send(embedded, V1, REQUEST)).generated_text


def test_its_response_carries_field_1_alone(embedded: ServerProcess) -> None:
    ((number, _, text),) = fields(send(embedded, ORIGINAL, REQUEST))
    assert number == 1
    assert text.decode()


def test_a_recorded_v1_request_is_understood(embedded: ServerProcess) -> None:
    request = llm_pb2.GenerateTextRequest.FromString(V1_REQUEST)
    assert (request.prompt, request.max_tokens, request.temperature) == (PROMPT, 32, 0.5)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 40, 7)
    assert sampling.HasField("temperature")
    assert request.stopping.stop_strings == ["#"]
    assert request.SerializeToString() == V1_REQUEST
    response = llm_pb2.GenerateTextResponse.FromString(send(embedded, V1, V1_REQUEST))
    assert response.finish_reason
    assert response.usage.completion_tokens > 0


@pytest.mark.parametrize("prompt", [PROMPT, "Résume : le chat noir dort.", "x"])
@pytest.mark.parametrize("max_tokens", [0, 1, 24])
def test_both_services_give_the_same_text(embedded: ServerProcess, prompt: str, max_tokens: int) -> None:
    request = llm_pb2.GenerateTextRequest(prompt=prompt, max_tokens=max_tokens).SerializeToString()
    original = b"".join(text for _, _, text in fields(send(embedded, ORIGINAL, request))).decode()
    assert original == llm_pb2.GenerateTextResponse.FromString(send(embedded, V1, request)).generated_text


@pytest.mark.parametrize("method", ["StreamGenerateText", "Chat", "BatchGenerateText", "generatetext"])
def test_it_has_one_method_for_ever(embedded: ServerProcess, method: str) -> None:
    with embedded.channel() as channel:
        call: Any = channel.unary_unary(f"/LLMService/{method}", request_serializer=bytes)
        assert call.future(REQUEST, timeout=HANG_S).code() is grpc.StatusCode.UNIMPLEMENTED
