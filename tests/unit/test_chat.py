"""Messages of several sequences, each read for itself, put together again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from llm_grpc.sampling_params import FinishReason
from llm_grpc.server.chat import _Answer, joined_chat
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.text_delta import TextDelta, TextToken
from llm_grpc.text.tool_format import HERMES, ToolFormat
from llm_grpc.v1 import llm_pb2

REQUEST = llm_pb2.GenerateTextRequest(prompt="x")
MODEL = cast("ServedModel", SimpleNamespace(name="model"))
CALL = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


def answer(*deltas: TextDelta, form: ToolFormat | None = HERMES) -> list[llm_pb2.ChatResponse]:
    reader = _Answer(REQUEST, MODEL, form, ["clock"])
    return [part for delta in deltas if (part := reader.push(delta))]


DELTAS = [
    TextDelta("Let", 0),
    TextDelta(CALL[:20], 1),
    TextDelta(" me", 0, (TextToken(3),)),
    TextDelta(CALL[20:], 1),
    TextDelta("", 1, finish_reason=FinishReason.EOS, completion_tokens=9),
    TextDelta(" see", 0, (TextToken(4), TextToken(5)), finish_reason=FinishReason.EOS),
]


def test_each_sequence_is_read_for_itself() -> None:
    parts = answer(*DELTAS)
    assert [part.sequence for part in parts] == list(range(len(parts)))
    whole = joined_chat(parts, several=True)
    first, second = whole.choices
    assert (first.message.content, first.finish_reason) == ("Let me see", llm_pb2.FINISH_REASON_EOS)
    assert [token.id for token in first.tokens] == [3, 4, 5]
    assert second.message.content == ""
    assert [call.name for call in second.message.tool_calls] == ["clock"]
    assert (second.index, second.finish_reason) == (1, llm_pb2.FINISH_REASON_TOOL_CALLS)
    assert second.usage.completion_tokens == 9
    assert (whole.message, whole.index, whole.usage) == (first.message, 0, first.usage)
    assert not joined_chat(parts, several=False).choices


def test_a_delta_with_nothing_to_say_yet_is_no_message() -> None:
    assert answer(TextDelta(CALL[:20]), TextDelta("")) == []
    assert len(answer(TextDelta(CALL[:20], tokens=(TextToken(1),)))) == 1
    assert len(answer(TextDelta(CALL[:20]), form=None)) == 1


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CONTEXT_LIMIT, FinishReason.CANCELLED])
def test_an_answer_that_was_cut_says_so_whatever_it_called(reason: FinishReason) -> None:
    last = answer(TextDelta(CALL), TextDelta("", finish_reason=reason))[-1]
    assert llm_pb2.FinishReason.Name(last.finish_reason) == f"FINISH_REASON_{reason.name}"
