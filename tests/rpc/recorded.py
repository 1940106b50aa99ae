"""Requests as clients have sent them, byte for byte: `python -m tests.rpc.recorded` records new ones.

What was recorded is never recorded again: bytes that a client of today sends mean the same for ever.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from llm_grpc.v1 import admin_pb2, llm_pb2, model_pb2, tokenizer_pb2

FILE = Path(__file__).parents[1] / "data" / "requests.json"
SERVICES = ("LLMService", "TokenizerService", "ModelService")
PROMPT = "Translate to French: the black cat"
MESSAGES = [{"role": "ROLE_SYSTEM", "content": "Be brief."}, {"role": "ROLE_USER", "content": PROMPT}]
SEEDED = {"temperature": 1.0, "seed": 7}

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("LLMService/GenerateText", {"prompt": PROMPT}),
    ("LLMService/GenerateText", {"prompt": PROMPT, "max_tokens": 4, "temperature": 0.5, "model": "embedded"}),
    ("LLMService/GenerateText", {"prompt_token_ids": [5, 6, 7], "max_tokens": 3}),
    (
        "LLMService/GenerateText",
        {
            "prompt": PROMPT,
            "max_tokens": 6,
            "sampling": {
                **SEEDED, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "typical_p": 0.95, "n": 2,
                "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.25,
                "logit_bias": {"7": -1.5}, "banned_token_ids": [9, 10],
            },
            "stopping": {
                "stop_strings": ["\n"], "stop_token_ids": [11], "include_stop": True, "min_tokens": 2,
            },
        },
    ),
    (
        "LLMService/GenerateText",
        {
            "prompt": PROMPT,
            "max_tokens": 6,
            "sampling": {"allowed_token_ids": [20, 21, 22]},
            "stopping": {"ignore_eos": True},
            "response_options": {
                "tokens": True, "logprobs": True, "top_logprobs": 3, "token_text": True,
                "prompt_logprobs": True, "prompt_top_logprobs": 2, "prompt_tokens": True, "echo": True,
                "timing": True, "receipt": True,
            },
            "truncate_prompt_tokens": 5,
            "priority": -3,
            "cache": {"disabled": True, "salt": "tenant"},
        },
    ),
    ("LLMService/GenerateText", {"prompt": PROMPT, "request_id": "recorded-1", "cache": {"salt": "a"}}),
    ("LLMService/StreamGenerateText", {"prompt": PROMPT, "response_options": {"tokens": True}}),
    (
        "LLMService/StreamGenerateText",
        {
            "prompt": PROMPT,
            "constraint": {"json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}}}'},
            "sampling": SEEDED,
            "max_tokens": 40,
        },
    ),
    ("LLMService/GenerateText", {"prompt": PROMPT, "constraint": {"json_object": True}, "max_tokens": 30}),
    ("LLMService/GenerateText", {"prompt": PROMPT, "constraint": {"regex": "[a-z]{3}"}}),
    ("LLMService/GenerateText", {"prompt": PROMPT, "constraint": {"grammar": 'start: "a" "b"'}}),
    ("LLMService/GenerateText", {"prompt": PROMPT, "constraint": {"choice": {"choices": ["yes", "no"]}}}),
    ("LLMService/Chat", {"messages": MESSAGES, "max_tokens": 8}),
    (
        "LLMService/Chat",
        {
            "messages": [*MESSAGES, {"role": "ROLE_ASSISTANT", "content": "le chat noir"}, MESSAGES[1]],
            "sampling": {**SEEDED, "n": 2},
            "stopping": {"stop_strings": ["."]},
            "constraint": {"regex": "[a-z ]{4,9}"},
            "response_options": {"timing": True},
            "template_options": {"enable_thinking": False},
            "tool_choice": {"mode": "TOOL_CHOICE_MODE_NONE"},
            "request_id": "recorded-2",
            "priority": 1,
            "max_tokens": 12,
        },
    ),
    ("LLMService/StreamChat", {"messages": MESSAGES, "max_tokens": 8, "temperature": 0.5}),
    (
        "LLMService/BatchGenerateText",
        {"requests": [{"prompt": PROMPT}, {"prompt": "", "max_tokens": 3}, {"prompt": "a", "max_tokens": 2}]},
    ),
    ("LLMService/ScoreText", {"prompt": PROMPT, "candidates": ["le chat", "la"], "top_logprobs": 2}),
    (
        "LLMService/ScoreText",
        {
            "prompt_token_ids": [5, 6],
            "candidate_token_ids": [{"ids": [7]}, {"ids": [8, 9]}],
            "token_text": True,
        },
    ),
    ("LLMService/CancelGeneration", {"request_id": "recorded-3"}),
    ("TokenizerService/Tokenize", {"text": PROMPT, "add_special_tokens": False, "truncate_tokens": 3}),
    ("TokenizerService/Tokenize", {"chat": {"messages": MESSAGES}, "count_only": True, "model": "embedded"}),
    ("TokenizerService/Detokenize", {"token_ids": [5, 6, 7], "keep_special_tokens": True}),
    ("ModelService/GetModel", {"name": "embedded"}),
    ("ModelService/ListModels", {"page_size": 2}),
    ("ModelService/GetServerInfo", {}),
]  # fmt: skip
"""What the embedded model serves."""

TOOLS = [{"name": "weather", "description": "of a place", "parameters": {"type": "object"}}]
CALLS = [{"id": "call_1", "name": "weather", "arguments": "{}"}]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("LLMService/GenerateText", {"prompt": PROMPT, "adapter": "french"}),
    ("LLMService/ScoreText", {"prompt": PROMPT, "candidates": ["a"], "adapter": "french"}),
    (
        "LLMService/Chat",
        {
            "messages": [
                {"role": "ROLE_USER", "content": PROMPT, "name": "ann"},
                {"role": "ROLE_ASSISTANT", "tool_calls": CALLS},
                {"role": "ROLE_TOOL", "content": "rain", "tool_call_id": "call_1", "name": "weather"},
            ],
            "tools": TOOLS,
            "tool_choice": {"mode": "TOOL_CHOICE_MODE_NAMED", "name": "weather"},
            "adapter": "french",
        },
    ),
    (
        "TokenizerService/Tokenize",
        {"chat": {"messages": MESSAGES, "tools": TOOLS, "template_options": {"thinking": True}}},
    ),
    ("ModelService/ListModels", {"page_token": "nobody gave this one out"}),
]
"""What the embedded model refuses: it takes neither adapters nor tools."""


class Recorded(NamedTuple):
    """The bytes of one request, what they mean, whom they were sent to, and whether that refused them."""

    method: str
    fields: dict[str, Any]
    data: bytes
    is_refused: bool

    @property
    def path(self) -> str:
        """The method as HTTP/2 names it."""
        return f"/llm_grpc.v1.{self.method}"


def recorded() -> list[Recorded]:
    """What the file holds."""
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    return [
        Recorded(each["method"], each["fields"], base64.b64decode(each["data"]), each["refused"])
        for each in entries
    ]


def messages_of(method: str) -> tuple[Callable[[], Message], Callable[[], Message]]:
    """The types of a method's requests and responses."""
    service, name = method.split("/")
    found = descriptor_pool.Default().FindServiceByName(f"llm_grpc.v1.{service}").FindMethodByName(name)
    kinds = found.input_type, found.output_type
    request, response = map(message_factory.GetMessageClass, kinds)
    return request, response


def _record() -> None:
    known = {(each.method, json.dumps(each.fields)) for each in recorded()} if FILE.exists() else set()
    entries = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else []
    for method, asked in (*REQUESTS, *REFUSED):
        request = json_format.ParseDict(asked, messages_of(method)[0]())
        fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
        if (method, json.dumps(fields)) not in known:
            data = base64.b64encode(request.SerializeToString(deterministic=True)).decode()
            refused = (method, asked) in REFUSED
            entries.append({"method": method, "fields": fields, "data": data, "refused": refused})
    FILE.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


_ = admin_pb2, llm_pb2, model_pb2, tokenizer_pb2  # what they declare is looked up by name

if __name__ == "__main__":
    _record()
