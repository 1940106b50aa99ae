"""Answers held to a form, from the embedded model in a process: they have it, and what cannot be is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
import jsonschema
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.process import ServerProcess

PROMPT = "Translate to French: the cat sees the house."

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", "naïve 😀"]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,6}$"}, "maxItems": 3},
        "home": {"$ref": "#/$defs/home"},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
    "$defs": {
        "home": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 10}, "size": {"type": "number", "maximum": 500}},
            "required": ["size"],
            "additionalProperties": False,
        }
    },
}
TABLE = {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "array", "items": {"type": ["integer", "null"], "minimum": -99, "maximum": 99}, "maxItems": 4}}
EITHER = {"anyOf": [{"const": {"a": 1}}, {"type": "string", "format": "date"}, {"type": "boolean"}]}
REGEX = "[A-Z][a-z]{1,7} (is|was) [0-9]{1,3}[.!]"
CHOICES = ["yes", "yes, it is", "no", "peut-être 😀"]


class Form(NamedTuple):
    constraint: llm_pb2.Constraint
    check: Callable[[str], object]


def of_schema(schema: Any) -> Form:
    def check(text: str) -> None:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))

    return Form(llm_pb2.Constraint(json_schema=json.dumps(schema)), check)


def is_object(text: str) -> None:
    assert isinstance(json.loads(text), dict)


def matches(text: str) -> None:
    assert re.fullmatch(REGEX, text), text


def is_choice(text: str) -> None:
    assert text in CHOICES


FORMS = [
    of_schema(PERSON),
    of_schema(TABLE),
    of_schema(EITHER),
    Form(llm_pb2.Constraint(json_object=True), is_object),
    Form(llm_pb2.Constraint(regex=REGEX), matches),
    Form(llm_pb2.Constraint(choice=llm_pb2.Choice(choices=CHOICES)), is_choice),
    Form(llm_pb2.Constraint(grammar='start: "<" NUMBER ("," NUMBER){0,3} ">"\nNUMBER: /[0-9]{1,4}/'), lambda text: [int(part) for part in text[1:-1].split(",")]),
]  # fmt: skip


@pytest.fixture(scope="module")
def stub(embedded: ServerProcess) -> Iterator[llm_pb2_grpc.LLMServiceStub]:
    with embedded.channel() as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


def request_for(form: Form, seed: int, **fields: Any) -> Request:
    sampling = llm_pb2.Sampling(temperature=1.0, seed=seed)
    return Request(prompt=PROMPT, max_tokens=900, sampling=sampling, constraint=form.constraint, **fields)


def valid_answers(stub: llm_pb2_grpc.LLMServiceStub, count: int) -> int:
    """How many of so many answers, of all forms in turn, end by themselves and have their form."""

    def answer(seed: int) -> bool:
        form = FORMS[seed % len(FORMS)]
        response = stub.GenerateText(request_for(form, seed))
        assert response.finish_reason in {llm_pb2.FINISH_REASON_EOS, llm_pb2.FINISH_REASON_STOP}, (seed, response)
        form.check(response.generated_text)
        return True

    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(answer, range(count)))


def test_answers_at_temperature_1_have_their_form(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    assert valid_answers(stub, 40) == 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_1000_of_1000_answers_at_temperature_1_have_their_form(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    assert valid_answers(stub, 1000) == 1000
