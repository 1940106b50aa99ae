"""From the contract's constraint to what holds the engine's sequences to it."""

from __future__ import annotations

import json

from llm_grpc.errors import InvalidParameter, UnsupportedParameter
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.text_request import NewConstraint
from llm_grpc.v1 import llm_pb2


async def to_constraint(
    request: llm_pb2.GenerateTextRequest | llm_pb2.ChatRequest, model: ServedModel
) -> NewConstraint | None:
    """Check and compile the constraint of a request, whose other fields are known to be within their limits.

    Raises:
        InvalidParameter: the form cannot be used, or not with what else the request asks for.
        UnsupportedParameter: the model takes no constraints.
    """
    if not request.HasField("constraint"):
        return None
    if model.constraints is None:
        raise UnsupportedParameter(f"constraint: the tokenizer of {model.name!r} allows none")
    kind = request.constraint.WhichOneof("constraint")
    if kind is None:
        raise InvalidParameter("constraint", "must hold one of its fields")
    _check_combinations(kind, request.sampling, request.stopping)
    return await model.constraints.compile(kind, _text(kind, request.constraint))


def _check_combinations(kind: str, sampling: llm_pb2.Sampling, stopping: llm_pb2.Stopping) -> None:
    """Refuse what could leave no token that may come."""
    others = {
        "sampling.allowed_token_ids": sampling.allowed_token_ids,
        "sampling.banned_token_ids": sampling.banned_token_ids,
        "stopping.min_tokens": stopping.min_tokens,
    }
    for other, value in others.items():
        if value:
            raise InvalidParameter(
                f"constraint.{kind}", f"cannot go with {other}: the two may leave no token that may come"
            )


def _text(kind: str, constraint: llm_pb2.Constraint) -> str:
    """The form as a text, a list of choices as JSON."""
    if kind == "json_object":
        if not constraint.json_object:
            raise InvalidParameter("constraint.json_object", "is false, and must be true")
        return ""
    if kind == "choice":
        return json.dumps(_choices(constraint.choice), ensure_ascii=False)
    text: str = getattr(constraint, kind)
    if not text:
        raise InvalidParameter(f"constraint.{kind}", "must not be empty")
    return text


def _choices(choice: llm_pb2.Choice) -> list[str]:
    choices = list(choice.choices)
    if not choices:
        raise InvalidParameter("constraint.choice.choices", "has 0 entries, and the least is 1")
    for at, text in enumerate(choices):
        if not text:
            raise InvalidParameter(f"constraint.choice.choices[{at}]", "must not be empty")
    return choices
