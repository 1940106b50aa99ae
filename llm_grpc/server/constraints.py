"""From the contract's constraint to what holds the engine's sequences to it."""

from __future__ import annotations

import json

from llm_grpc.errors import InvalidParameter, UnsupportedParameter
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.constraint_compiler import TOOL_CALLS
from llm_grpc.text.constraints import Constraints
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
    compiler = _compiler(model, "constraint")
    kind = request.constraint.WhichOneof("constraint")
    if kind is None:
        raise InvalidParameter("constraint", "must hold one of its fields")
    _check_combinations(f"constraint.{kind}", request)
    return await compiler.compile(kind, _text(kind, request.constraint))


async def to_call_constraint(form: str, request: llm_pb2.ChatRequest, model: ServedModel) -> NewConstraint:
    """Compile the ``call_form`` of a request, whose other fields are known to be within their limits.

    Raises:
        InvalidParameter: a tool's schema cannot be used, or none with what else the request asks for.
        UnsupportedParameter: the model takes no constraints.
    """
    compiler = _compiler(model, "tool_choice.mode")
    _check_combinations("tool_choice.mode", request)
    return await compiler.compile(TOOL_CALLS, form)


def _compiler(model: ServedModel, field: str) -> Constraints:
    if model.constraints is None:
        raise UnsupportedParameter(f"{field}: the model {model.name!r} takes no constraints")
    return model.constraints


def _check_combinations(field: str, request: llm_pb2.GenerateTextRequest | llm_pb2.ChatRequest) -> None:
    """Refuse what could leave no token that may come beside the form that ``field`` asks for."""
    sampling, stopping = request.sampling, request.stopping
    others = {
        "sampling.allowed_token_ids": sampling.allowed_token_ids,
        "sampling.banned_token_ids": sampling.banned_token_ids,
        "stopping.min_tokens": stopping.min_tokens,
    }
    for other, value in others.items():
        if value:
            problem = f"cannot go with {other}: the two may leave no token that may come"
            raise InvalidParameter(field, problem)


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
