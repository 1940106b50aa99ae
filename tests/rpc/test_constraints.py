"""Answers held to a form, from the embedded model in a process: they have it, or are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

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
            "properties": {
                "street": {"type": "string", "maxLength": 10},
                "size": {"type": "number", "maximum": 500},
            },
            "required": ["size"],
            "additionalProperties": False,
        }
    },
}
TABLE = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {
        "type": "array",
        "items": {"type": ["integer", "null"], "minimum": -99, "maximum": 99},
        "maxItems": 4,
    },
}
MAP = {
    "type": "object",
    "patternProperties": {"^[a-zé]{1,5}$": {"type": "integer"}},
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 3,
}
EITHER = {"anyOf": [{"const": {"a": 1}}, {"type": "string", "format": "date"}, {"type": "boolean"}]}
REGEX = "[A-Z][a-z]{1,7} (is|was) [0-9]{1,3}[.!]"
GRAMMAR = 'start: "<" NUMBER ("," NUMBER){0,3} ">"\nNUMBER: /[0-9]{1,4}/'
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


def are_numbers(text: str) -> None:
    assert all(int(number) >= 0 for number in text.removeprefix("<").removesuffix(">").split(","))


def is_choice(text: str) -> None:
    assert text in CHOICES


FORMS = [
    of_schema(PERSON),
    of_schema(TABLE),
    of_schema(EITHER),
    of_schema(MAP),
    Form(llm_pb2.Constraint(regex=REGEX), matches),
    Form(llm_pb2.Constraint(choice=llm_pb2.Choice(choices=CHOICES)), is_choice),
    Form(llm_pb2.Constraint(grammar=GRAMMAR), are_numbers),
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
        assert response.finish_reason in {llm_pb2.FINISH_REASON_EOS, llm_pb2.FINISH_REASON_STOP}, (
            seed,
            response,
        )
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


def test_any_object_begins_as_one_and_is_one_unless_it_was_cut(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    """A model this small may write a string for ever: such a text is cut, and says so."""
    for seed in range(4):
        request = request_for(Form(llm_pb2.Constraint(json_object=True), is_object), seed)
        request.max_tokens = 40
        answer = stub.GenerateText(request)
        assert answer.generated_text.startswith("{")
        if answer.finish_reason != llm_pb2.FINISH_REASON_LENGTH:
            is_object(answer.generated_text)


def test_a_stream_is_the_same_text_in_parts(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    for seed, form in enumerate(FORMS):
        request = request_for(form, seed, cache=llm_pb2.Cache(disabled=True))
        parts = list(stub.StreamGenerateText(request))
        form.check("".join(part.generated_text for part in parts))
        assert "".join(part.generated_text for part in parts) == stub.GenerateText(request).generated_text


def test_greedy_answers_have_their_form_and_say_why_they_ended(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    request = Request(prompt=PROMPT, max_tokens=20, constraint=llm_pb2.Constraint(regex="le chat[!]"))
    answer = stub.GenerateText(request)
    assert answer.generated_text == "le chat!"
    assert answer.finish_reason == llm_pb2.FINISH_REASON_STOP
    assert answer.WhichOneof("stop_match") is None
    request.stopping.ignore_eos = True
    assert stub.GenerateText(request) == answer


def test_a_text_that_is_cut_or_stopped_may_lack_its_end(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    constraint = llm_pb2.Constraint(regex="le chat voit la maison")
    cut = stub.GenerateText(Request(prompt=PROMPT, max_tokens=1, constraint=constraint))
    assert cut.finish_reason == llm_pb2.FINISH_REASON_LENGTH
    assert "le chat voit la maison".startswith(cut.generated_text)
    stopping = llm_pb2.Stopping(stop_strings=[" voit"])
    stopped = stub.GenerateText(
        Request(prompt=PROMPT, max_tokens=50, constraint=constraint, stopping=stopping)
    )
    assert stopped.generated_text == "le chat"
    assert stopped.stop_string == " voit"


REFUSED = [
    (llm_pb2.Constraint(), "constraint", "must hold one of its fields"),
    (llm_pb2.Constraint(json_object=False), "constraint.json_object", "is false, and must be true"),
    (llm_pb2.Constraint(json_schema=""), "constraint.json_schema", "must not be empty"),
    (llm_pb2.Constraint(json_schema='{"items": {"foo": 1}}'), "constraint.json_schema", "at #/items/foo: "),
    (llm_pb2.Constraint(json_schema='{"type"'), "constraint.json_schema", "line 1, column 8: "),
    (llm_pb2.Constraint(regex="["), "constraint.regex", "column 1: "),
    (llm_pb2.Constraint(grammar="start: x"), "constraint.grammar", "line 1, column 8: "),
    (llm_pb2.Constraint(choice=llm_pb2.Choice()), "constraint.choice.choices", "has 0 entries"),
    (
        llm_pb2.Constraint(choice=llm_pb2.Choice(choices=["a", ""])),
        "constraint.choice.choices[1]",
        "must not be",
    ),
]


@pytest.mark.parametrize(("constraint", "field", "problem"), REFUSED, ids=[each[1] for each in REFUSED])
@pytest.mark.parametrize("streams", [False, True])
def test_what_cannot_be_used_is_an_invalid_argument(
    stub: llm_pb2_grpc.LLMServiceStub, constraint: llm_pb2.Constraint, field: str, problem: str, streams: bool
) -> None:
    request = Request(prompt=PROMPT, constraint=constraint)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.StreamGenerateText(request)) if streams else stub.GenerateText(request)
    assert_invalid(caught.value, field, problem)


def assert_invalid(error: grpc.RpcError, field: str, problem: str) -> None:
    call = cast(grpc.Call, error)
    status = rpc_status.from_call(call)
    assert status is not None
    assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
    details = error_details_pb2.BadRequest()
    assert any(detail.Unpack(details) for detail in status.details)
    assert details.field_violations[0].field == field
    assert problem in details.field_violations[0].description


def test_a_form_too_complex_for_its_text_fails_alone(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    hard = Form(llm_pb2.Constraint(regex="a{1000000}"), is_object)
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(stub.GenerateText, request_for(FORMS[at], at)) for at in range(4)]
        bad = [pool.submit(stub.GenerateText, request_for(hard, at)) for at in range(2)]
        for at, future in enumerate(good):
            FORMS[at].check(future.result().generated_text)
        for future in bad:
            with pytest.raises(grpc.RpcError) as caught:
                future.result()
            assert_invalid(caught.value, "constraint.regex", "is too complex after ")
