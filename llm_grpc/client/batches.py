"""Batches: from prompts to one request message, and from its answers to results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llm_grpc.client.errors import LLMError, from_status
from llm_grpc.client.options import GenerateOptions, Prompt
from llm_grpc.client.requests import generate_request
from llm_grpc.v1 import llm_pb2

BatchItem = Prompt | llm_pb2.GenerateTextRequest
"""A prompt, which takes the options of the batch, or a request of its own (``generate_request``)."""


class BatchResult(NamedTuple):
    """What became of item ``item`` of a batch: the answer, or the error that the call alone would raise."""

    item: int
    result: llm_pb2.GenerateTextResponse | LLMError


def batch_request(items: Iterable[BatchItem], options: GenerateOptions) -> llm_pb2.BatchGenerateTextRequest:
    """Build a request. How many there may be is the server's to check."""
    if isinstance(items, str | bytes):
        raise TypeError("a batch is a sequence of prompts, not one text")
    requests = (
        item if isinstance(item, llm_pb2.GenerateTextRequest) else generate_request(item, options)
        for item in items
    )
    return llm_pb2.BatchGenerateTextRequest(requests=requests)


def batch_result(message: llm_pb2.BatchGenerateTextResponse) -> BatchResult:
    """Return one answer as the clients hand it out."""
    if message.HasField("status"):
        return BatchResult(message.item, from_status(message.status))
    return BatchResult(message.item, message.response)
