"""Messages of several sequences, each read for itself, put together again."""

from __future__ import annotations

import pytest

from llm_grpc.sampling_params import FinishReason, SamplingParams
from llm_grpc.server.chat import _Answer, joined_chat
from llm_grpc.text.generator import TextDelta
from llm_grpc.text.text_request import TextRequest
from llm_grpc.text.tool_format import HERMES, ToolFormat
from llm_grpc.v1 import llm_pb2

ASKED = TextRequest("x", SamplingParams(max_tokens=9, seed=7))
CALL = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


def answer(*deltas: TextDelta, form: ToolFormat | None = HERMES) -> list[llm_pb2.ChatResponse]:
    reader = _Answer(ASKED, "model", form, ["clock"])
    return [part for delta in deltas if (part := reader.push(delta))]


DELTAS = [
    TextDelta("Let", index=0),
    TextDelta(CALL[:20], index=1),
    TextDelta(" me", index=0, tokens=(3,)),
    TextDelta(CALL[20:], index=1),
    TextDelta("", FinishReason.EOS, 4, 9, index=1),
    TextDelta(" see", FinishReason.EOS, 4, 5, index=0, tokens=(4, 5)),
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
    assert len(answer(TextDelta(CALL[:20], tokens=(1,)))) == 1
    assert len(answer(TextDelta(CALL[:20]), form=None)) == 1


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CONTEXT_LIMIT, FinishReason.CANCELLED])
def test_an_answer_that_was_cut_says_so_whatever_it_called(reason: FinishReason) -> None:
    last = answer(TextDelta(CALL), TextDelta("", reason))[-1]
    assert llm_pb2.FinishReason.Name(last.finish_reason) == f"FINISH_REASON_{reason.name}"
