"""What an operator has in a terminal: grpcurl, with nothing but the server's reflection, and a probe."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2

from llm_grpc import __version__
from llm_grpc.original.llm_service_pb2 import TextGenerationResponse as Original
from llm_grpc.v1 import chat_pb2, llm_pb2, model_pb2, tokenizer_pb2
from llm_grpc.v1.llm_pb2 import BatchGenerateTextResponse as BatchItem
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response
from llm_grpc.v1.llm_pb2 import ScoreTextResponse
from tests.rpc.process import HANG_S, ServerProcess

Grpcurl = Callable[..., str]
Parsed = TypeVar("Parsed", bound=Message)

PROMPT = "Translate to French: the black cat"
REQUEST = json.dumps({"prompt": PROMPT, "max_tokens": 32})
SERVICES = [
    "LLMService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "llm_grpc.v1.LLMService",
    "llm_grpc.v1.ModelService",
    "llm_grpc.v1.TokenizerService",
]
CALLS = ["list", "describe", "unary", "stream", "original", "model", "health"]


@pytest.fixture
def grpcurl(tool: Callable[[str], str], embedded: ServerProcess) -> Grpcurl:
    """``grpcurl(flags, what...)``: run it against the embedded model; returns what it prints."""

    def run(*words: str, data: str = "", address: str = embedded.address) -> str:
        command = [tool("grpcurl"), "-plaintext", *(["-d", data] if data else []), address, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON documents that grpcurl printed one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def parsed(kind: type[Parsed], text: str) -> list[Parsed]:
    """The documents as messages; a field may have its proto or its JSON name."""
    return [json_format.ParseDict(document, kind()) for document in documents(text)]


def assert_same(unary: Response, stream: list[Response]) -> None:
    assert unary.usage.prompt_tokens > 0
    assert unary.generated_text == "".join(part.generated_text for part in stream)
    assert unary.finish_reason == stream[-1].finish_reason
    assert unary.usage.prompt_tokens == stream[-1].usage.prompt_tokens
    assert unary.usage.completion_tokens == stream[-1].usage.completion_tokens


def test_list(grpcurl: Grpcurl) -> None:
    assert grpcurl("list").split() == SERVICES
    assert grpcurl("list", "LLMService").split() == ["LLMService.GenerateText"]
    methods = (
        "BatchGenerateText",
        "CancelGeneration",
        "Chat",
        "GenerateText",
        "ScoreText",
        "StreamChat",
        "StreamGenerateText",
    )
    v1 = [f"llm_grpc.v1.LLMService.{method}" for method in methods]
    assert grpcurl("list", "llm_grpc.v1.LLMService").split() == v1


def test_list_the_admin_port(grpcurl: Grpcurl, embedded: ServerProcess) -> None:
    assert "llm_grpc.v1.AdminService" in grpcurl("list", address=embedded.admin_address).split()
    (load,) = documents(grpcurl("llm_grpc.v1.AdminService/GetLoad", address=embedded.admin_address))
    assert load["ready"]


def test_describe(grpcurl: Grpcurl) -> None:
    original = grpcurl("describe", "LLMService")
    assert "rpc GenerateText ( .TextGenerationRequest ) returns ( .TextGenerationResponse );" in original
    assert "Stream" not in original
    v1 = grpcurl("describe", "llm_grpc.v1.LLMService")
    request, response = ".llm_grpc.v1.GenerateTextRequest", ".llm_grpc.v1.GenerateTextResponse"
    assert f"rpc GenerateText ( {request} ) returns ( {response} );" in v1
    assert f"rpc StreamGenerateText ( {request} ) returns ( stream {response} );" in v1
    method = grpcurl("describe", "llm_grpc.v1.LLMService.GenerateText")
    assert f"rpc GenerateText ( {request} ) returns ( {response} );" in method
    assert "optional float top_p = 2;" in grpcurl("describe", "llm_grpc.v1.Sampling")


def test_generation(grpcurl: Grpcurl) -> None:
    original = parsed(Original, grpcurl("LLMService/GenerateText", data=REQUEST))
    unary = parsed(Response, grpcurl("llm_grpc.v1.LLMService/GenerateText", data=REQUEST))
    stream = parsed(Response, grpcurl("llm_grpc.v1.LLMService/StreamGenerateText", data=REQUEST))
    assert len(original) == len(unary) == 1
    assert original[0].generated_text == unary[0].generated_text != ""
    assert_same(unary[0], stream)
    assert len(stream) > 1


def test_models_and_server_info(grpcurl: Grpcurl) -> None:
    service = "llm_grpc.v1.ModelService"
    (listed,) = parsed(
        model_pb2.ListModelsResponse, grpcurl(f"{service}/ListModels", data='{"page_size": 1}')
    )
    (model,) = listed.models
    assert (model.name, model.is_default, listed.next_page_token) == ("embedded", True, "")
    assert model.state == model_pb2.MODEL_STATE_READY
    assert model.provider == "CPUExecutionProvider"
    (found,) = parsed(model_pb2.GetModelResponse, grpcurl(f"{service}/GetModel", data='{"name": "embedded"}'))
    assert found.model == model
    (info,) = parsed(model_pb2.GetServerInfoResponse, grpcurl(f"{service}/GetServerInfo"))
    assert (info.version, info.default_model) == (__version__, "embedded")


def test_a_batch(grpcurl: Grpcurl) -> None:
    batch = json.dumps({"requests": [{"prompt": PROMPT, "max_tokens": 32}, {"max_tokens": 32}]})
    items = parsed(BatchItem, grpcurl("llm_grpc.v1.LLMService/BatchGenerateText", data=batch))
    answer, refused = sorted(items, key=lambda item: item.item)
    (alone,) = parsed(Response, grpcurl("llm_grpc.v1.LLMService/GenerateText", data=REQUEST))
    assert answer.response.generated_text == alone.generated_text
    assert refused.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refused.status.message.startswith("prompt: must not be empty")


def test_scores(grpcurl: Grpcurl) -> None:
    request = json.dumps({"prompt": PROMPT, "candidates": [" cat", " xq"], "top_logprobs": 1})
    (scores,) = parsed(ScoreTextResponse, grpcurl("llm_grpc.v1.LLMService/ScoreText", data=request))
    assert scores.scores[0].logprob > scores.scores[1].logprob
    assert all(len(token.top_logprobs) == 1 for score in scores.scores for token in score.tokens)


def test_a_request_under_a_name(grpcurl: Grpcurl) -> None:
    asked = {"prompt": PROMPT, "request_id": "mine", "sampling": {"temperature": 1.0}, "priority": -1}
    first, again = (
        parsed(Response, grpcurl("llm_grpc.v1.LLMService/GenerateText", data=json.dumps(asked)))
        for _ in range(2)
    )
    assert first == again
    assert first[0].request_id == "mine"
    cancel = grpcurl("llm_grpc.v1.LLMService/CancelGeneration", data=json.dumps({"request_id": "mine"}))
    assert documents(cancel) == [{}], "it has ended: none was found"


def test_chat(grpcurl: Grpcurl) -> None:
    data = json.dumps({"messages": [{"role": "ROLE_USER", "content": PROMPT}], "max_tokens": 32})
    (unary,) = parsed(llm_pb2.ChatResponse, grpcurl("llm_grpc.v1.LLMService/Chat", data=data))
    stream = parsed(llm_pb2.ChatResponse, grpcurl("llm_grpc.v1.LLMService/StreamChat", data=data))
    (generated,) = parsed(Response, grpcurl("llm_grpc.v1.LLMService/GenerateText", data=REQUEST))
    assert unary.message.role == chat_pb2.ROLE_ASSISTANT
    assert unary.message.content == generated.generated_text != ""
    assert unary.message.content == "".join(part.message.content for part in stream)
    assert stream[-1].finish_reason == unary.finish_reason == generated.finish_reason


def test_tokens(grpcurl: Grpcurl) -> None:
    service = "llm_grpc.v1.TokenizerService"
    (there,) = parsed(
        tokenizer_pb2.TokenizeResponse, grpcurl(f"{service}/Tokenize", data=json.dumps({"text": PROMPT}))
    )
    assert there.count == len(there.tokens) > 1
    ids = json.dumps({"token_ids": [token.id for token in there.tokens]})
    (back,) = parsed(tokenizer_pb2.DetokenizeResponse, grpcurl(f"{service}/Detokenize", data=ids))
    assert back.text == PROMPT


def test_health(grpcurl: Grpcurl) -> None:
    for name in ("", "llm_grpc.v1.LLMService", "LLMService", "live", "model/embedded"):
        (answer,) = documents(grpcurl("grpc.health.v1.Health/Check", data=json.dumps({"service": name})))
        assert answer == {"status": "SERVING"}


def test_several_sequences_with_their_tokens_and_a_receipt(grpcurl: Grpcurl) -> None:
    asked = {
        "prompt": PROMPT,
        "max_tokens": 8,
        "sampling": {"temperature": 1, "seed": "18446744073709551615", "n": 2},
        "stopping": {"stop_strings": ["\n"], "include_stop": True},
        "response_options": {"token_text": True, "echo": True, "receipt": True},
        "truncate_prompt_tokens": 3,
    }
    [answer] = parsed(Response, grpcurl("llm_grpc.v1.LLMService/GenerateText", data=json.dumps(asked)))
    assert [(each.index, each.seed) for each in answer.sequences] == [(0, 2**64 - 1), (1, 0)]
    for each in answer.sequences:
        assert b"".join(token.text for token in each.tokens).decode() == each.generated_text
    assert PROMPT.endswith(answer.prompt_info.text)
    assert answer.prompt_info.truncated_tokens > 0
    assert answer.receipt.seed == 2**64 - 1
    stream = parsed(Response, grpcurl("llm_grpc.v1.LLMService/StreamGenerateText", data=json.dumps(asked)))
    for each in answer.sequences:
        own = [part for part in stream if part.index == each.index]
        assert "".join(part.generated_text for part in own) == each.generated_text


def test_an_error_shows_its_details(tool: Callable[[str], str], embedded: ServerProcess) -> None:
    method = "llm_grpc.v1.LLMService/GenerateText"
    command = [tool("grpcurl"), "-plaintext", "-d", "{}", embedded.address, method]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 64 + grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "prompt: must not be empty" in done.stderr
    assert "INVALID_PARAMETER" in done.stderr


def test_the_script_of_calls(tool: Callable[[str], str], embedded: ServerProcess, repository: Path) -> None:
    settings = {"ADDRESS": embedded.address, "GRPCURL": tool("grpcurl"), "PROMPT": 'say "chat\\noir"'}
    env = {**os.environ, **settings}
    command = [str(repository / "clients/grpcurl/calls.sh")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S, env=env)
    assert done.returncode == 0, done.stderr
    _, *parts = re.split(r"^# (.*)\n", done.stdout, flags=re.MULTILINE)
    said = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(said) == CALLS
    assert said["list"].split() == SERVICES
    assert "StreamGenerateText" in said["describe"]
    (unary,), (original,) = parsed(Response, said["unary"]), parsed(Original, said["original"])
    assert_same(unary, parsed(Response, said["stream"]))
    assert original.generated_text == unary.generated_text
    (model,) = parsed(model_pb2.GetModelResponse, said["model"])
    assert model.model.limits.context_tokens > 0
    assert documents(said["health"]) == [{"status": "SERVING"}]
    assert subprocess.run([*command, "nonsense"], check=False, capture_output=True, env=env).returncode == 2


@pytest.mark.parametrize(
    ("service", "code"), [("", 0), ("llm_grpc.v1.LLMService", 0), ("live", 0), ("no.such.Service", 3)]
)
def test_the_probe(tool: Callable[[str], str], embedded: ServerProcess, service: str, code: int) -> None:
    command = [tool("grpc-health-probe"), f"-addr={embedded.address}", f"-service={service}"]
    assert subprocess.run(command, check=False, capture_output=True, timeout=HANG_S).returncode == code


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(embedded: ServerProcess, version: str) -> None:
    """Each version answers by itself: clients know one of them, and grpcurl falls back without a word."""

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        for symbol in (
            "LLMService",
            "LLMService.GenerateText",
            "llm_grpc.v1.Sampling",
            f"grpc.reflection.{version}.ServerReflection.ServerReflectionInfo",
            "no.such.Symbol",
        ):
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)

    with embedded.channel() as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        listed, *found, missing = call(requests(), timeout=HANG_S)
    assert sorted(service.name for service in listed.list_services_response.service) == SERVICES
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in found)
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_a_constraint(grpcurl: Grpcurl) -> None:
    schema = json.dumps({"type": "array", "items": {"enum": ["le", "chat"]}, "minItems": 2, "maxItems": 2})
    data = json.dumps({"prompt": PROMPT, "max_tokens": 64, "constraint": {"json_schema": schema}})
    (answer,) = parsed(Response, grpcurl("llm_grpc.v1.LLMService/GenerateText", data=data))
    assert set(json.loads(answer.generated_text)) <= {"le", "chat"}
