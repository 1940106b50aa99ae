"""A server that does what a test tells it and remembers what it was asked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc

LIMIT_S = 30.0
"""How long a test waits for an event that must come."""

Refusal = tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]


class _Unserved(llm_pb2_grpc.LLMServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """What no test of the clients calls here."""

    Chat = StreamChat = None  # type: ignore[assignment]


class FakeLLM(_Unserved):
    """Answers "one two"; first it refuses as often as `refusals` says."""

    def __init__(self) -> None:
        self.refusals: deque[Refusal] = deque()
        self.details: list[Any] = []
        self.requests: list[llm_pb2.GenerateTextRequest] = []
        self.batches: list[llm_pb2.BatchGenerateTextRequest] = []
        self.scores: list[llm_pb2.ScoreTextRequest] = []
        self.cancelled: list[str] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.time_remaining: list[float | None] = []
        self.pages: list[int] = []
        self.hang = False
        self.ended = threading.Event()

    def refuse(self, code: grpc.StatusCode, times: int = 1, pushback_ms: int | None = None) -> None:
        trailing = () if pushback_ms is None else (("grpc-retry-pushback-ms", str(pushback_ms)),)
        self.refusals.extend([(code, trailing)] * times)

    def GenerateText(self, request: llm_pb2.GenerateTextRequest, context: Any) -> Any:
        self._start(request, context)
        if self.hang:
            self._wait_for_end(context)
        return llm_pb2.GenerateTextResponse(generated_text="one two")

    def StreamGenerateText(self, request: llm_pb2.GenerateTextRequest, context: Any) -> Iterator[Any]:
        self._start(request, context)
        yield llm_pb2.GenerateTextResponse(generated_text="one")
        if self.hang:
            self._wait_for_end(context)
        if self.refusals:
            self._refuse(context)
        yield llm_pb2.GenerateTextResponse(
            generated_text=" two", sequence=1, finish_reason=llm_pb2.FINISH_REASON_EOS
        )

    def BatchGenerateText(self, request: llm_pb2.BatchGenerateTextRequest, context: Any) -> Iterator[Any]:
        """The last item first; an item with an empty prompt is refused."""
        context.add_callback(self.ended.set)
        self.batches.append(request)
        if self.refusals:
            self._refuse(context)
        for item, asked in reversed(list(enumerate(request.requests))):
            answer = llm_pb2.BatchGenerateTextResponse(item=item)
            if asked.prompt:
                answer.response.generated_text = asked.prompt
            else:
                details = [error_info("INVALID_PARAMETER"), bad_request("prompt", "must not be empty")]
                rich = rich_status(grpc.StatusCode.INVALID_ARGUMENT, "prompt: must not be empty", details)
                answer.status.ParseFromString(rich.SerializeToString())
            yield answer
            if self.hang:
                self._wait_for_end(context)

    def ScoreText(self, request: llm_pb2.ScoreTextRequest, context: Any) -> Any:
        self.scores.append(request)
        if self.refusals:
            self._refuse(context)
        return llm_pb2.ScoreTextResponse(scores=[llm_pb2.Score(logprob=-1.5)])

    def CancelGeneration(self, request: llm_pb2.CancelGenerationRequest, context: Any) -> Any:
        self.cancelled.append(request.request_id)
        if self.refusals:
            self._refuse(context)
        return llm_pb2.CancelGenerationResponse(num_cancelled=2)

    def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> Any:
        return model_pb2.GetModelResponse(model=model_pb2.Model(name=request.name or "default"))

    def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> Any:
        """Three models, one a page; a page's token is its number."""
        number = int(request.page_token or "0")
        self.pages.append(number)
        token = str(number + 1) if number < 2 else ""
        models = [model_pb2.Model(name=f"model-{number}")]
        return model_pb2.ListModelsResponse(models=models, next_page_token=token)

    def GetServerInfo(self, request: model_pb2.GetServerInfoRequest, context: Any) -> Any:
        return model_pb2.GetServerInfoResponse(version="1.2.3", default_model="model-1")

    def _start(self, request: llm_pb2.GenerateTextRequest, context: Any) -> None:
        # Here and not where it hangs: a generator whose call has ended is not resumed.
        context.add_callback(self.ended.set)
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_remaining.append(context.time_remaining())
        if self.refusals and not self.metadata[-1].get("refuse-late"):
            self._refuse(context)

    def _refuse(self, context: Any) -> NoReturn:
        code, trailing = self.refusals.popleft()
        rich = rpc_status.to_status(rich_status(code, "refused", self.details)).trailing_metadata
        context.set_trailing_metadata((*trailing, *rich) if self.details else trailing)
        context.abort(code, "refused")
        raise AssertionError

    def _wait_for_end(self, context: Any) -> None:
        over = threading.Event()
        if context.add_callback(over.set):
            over.wait(LIMIT_S)


def rich_status(code: grpc.StatusCode, message: str, details: list[Any]) -> Any:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def bad_request(field: str, description: str) -> Any:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return error_details_pb2.BadRequest(field_violations=[violation])


def error_info(reason: str) -> Any:
    return error_details_pb2.ErrorInfo(reason=reason, domain="llm_grpc")


def retry_info(seconds: int, nanos: int) -> Any:
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds, nanos=nanos))


@contextmanager
def serving(fake: FakeLLM) -> Iterator[str]:
    """Serve `fake` and a health service with two names, on a port of the system's choice."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    llm_pb2_grpc.add_LLMServiceServicer_to_server(fake, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(fake, server)
    checks = health.HealthServicer()
    checks.set("llm_grpc.v1.LLMService", health_pb2.HealthCheckResponse.SERVING)
    checks.set("live", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
