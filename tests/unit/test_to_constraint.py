"""A constraint of the contract: what is refused before anything is compiled."""

from __future__ import annotations

from typing import Any, cast

import pytest

from llm_grpc.errors import InvalidParameter, UnsupportedParameter
from llm_grpc.server.constraints import to_constraint
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.text_request import NewConstraint
from llm_grpc.v1 import llm_pb2

CONSTRAINT = llm_pb2.Constraint(regex="a")


class Compiles:
    """Takes every form, and notes it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def compile(self, kind: str, text: str) -> NewConstraint:
        self.asked.append((kind, text))
        return cast(NewConstraint, object)


class Model:
    name = "here"

    def __init__(self, constraints: Compiles | None) -> None:
        self.constraints = constraints


def model(constraints: Compiles | None) -> ServedModel:
    return cast(ServedModel, Model(constraints))


async def test_no_constraint_is_none_whatever_the_model() -> None:
    assert await to_constraint(llm_pb2.GenerateTextRequest(), model(None)) is None


async def test_a_model_without_constraints_says_so() -> None:
    with pytest.raises(UnsupportedParameter, match="constraint: the model 'here' takes no constraints"):
        await to_constraint(llm_pb2.GenerateTextRequest(constraint=CONSTRAINT), model(None))


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        ("sampling.allowed_token_ids", {"sampling": llm_pb2.Sampling(allowed_token_ids=[1])}),
        ("sampling.banned_token_ids", {"sampling": llm_pb2.Sampling(banned_token_ids=[1])}),
        ("stopping.min_tokens", {"stopping": llm_pb2.Stopping(min_tokens=1)}),
    ],
)
@pytest.mark.parametrize("kind", [llm_pb2.GenerateTextRequest, llm_pb2.ChatRequest])
async def test_what_may_leave_no_token_names_both_fields(
    kind: Any, other: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidParameter, match=rf"^constraint\.regex: cannot go with {other}"):
        await to_constraint(kind(constraint=CONSTRAINT, **fields), model(Compiles()))


async def test_a_bias_on_tokens_goes_with_a_constraint() -> None:
    sampling, compiles = llm_pb2.Sampling(logit_bias={1: -100.0}), Compiles()
    await to_constraint(
        llm_pb2.GenerateTextRequest(constraint=CONSTRAINT, sampling=sampling), model(compiles)
    )
    assert compiles.asked == [("regex", "a")]


async def test_a_list_of_choices_is_one_text_and_any_object_is_none() -> None:
    compiles = Compiles()
    forms = [
        llm_pb2.Constraint(choice=llm_pb2.Choice(choices=["é", '"'])),
        llm_pb2.Constraint(json_object=True),
    ]
    for form in forms:
        await to_constraint(llm_pb2.GenerateTextRequest(constraint=form), model(compiles))
    assert compiles.asked == [("choice", '["é", "\\""]'), ("json_object", "")]
