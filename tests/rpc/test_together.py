"""What is asked for together holds together: chats, scores, forms and what is told of them, by the embedded
model in a process.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from llm_grpc.v1.chat_pb2 import ROLE_USER, ChatMessage
from llm_grpc.v1.llm_pb2 import ChatRequest, ResponseOptions, Sampling, Stopping
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response
from tests.rpc.process import ServerProcess

PROMPT = "Translate to French: the cat sees the house."
FRESH = llm_pb2.Cache(disabled=True)
REGEX = "[a-z]{2,6}[.] [A-Z]{1,3}!"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def stubs(embedded: ServerProcess) -> Iterator[Any]:
    with embedded.channel() as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel), tokenizer_pb2_grpc.TokenizerServiceStub(channel)


@pytest.fixture
def stub(stubs: Any) -> Any:
    return stubs[0]


def ids_of(stubs: Any, text: str) -> list[int]:
    """The ids of a text without special tokens."""
    request = tokenizer_pb2.TokenizeRequest(text=text, add_special_tokens=False)
    tokens = stubs[1].Tokenize(request, timeout=TIMEOUT_S).tokens
    return [token.id for token in tokens]


def test_a_chat_of_several_tells_all_that_can_be_told(stubs: Any) -> None:
    stub, tokenizer = stubs
    messages = [ChatMessage(role=ROLE_USER, content=PROMPT)]
    request = ChatRequest(
        messages=messages,
        max_tokens=12,
        sampling=Sampling(temperature=1.0, seed=2**64 - 2, n=3),
        response_options=ResponseOptions(
            top_logprobs=2, token_text=True, echo=True, timing=True, receipt=True, prompt_logprobs=True
        ),
        cache=FRESH,
        request_id="all",
    )
    chat = tokenizer_pb2.ChatInput(messages=messages)
    tokens = tokenizer.Tokenize(tokenizer_pb2.TokenizeRequest(chat=chat), timeout=TIMEOUT_S)
    answer = stub.Chat(request, timeout=TIMEOUT_S)
    parts = list(stub.StreamChat(request, timeout=TIMEOUT_S))
    assert [part.sequence for part in parts] == list(range(len(parts)))
    assert (parts[0].index, [part.HasField("prompt_info") for part in parts].count(True)) == (0, 1)
    told = answer.prompt_info
    assert parts[0].prompt_info == told
    assert [token.id for token in told.tokens] == [token.id for token in tokens.tokens]
    assert told.text == re.sub(r"<\|\w+\|>", "", tokens.prompt), "special tokens give no text"
    assert [token.HasField("logprob") for token in told.tokens] == [False] + [True] * (tokens.count - 1)
    assert b"".join(token.text for token in told.tokens) == told.text.encode()
    streamed: defaultdict[int, list[llm_pb2.ChatResponse]] = defaultdict(list)
    for part in parts:
        streamed[part.index].append(part)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.seed for choice in answer.choices] == [2**64 - 2, 2**64 - 1, 0]
    for choice in answer.choices:
        mine = streamed[choice.index]
        assert "".join(part.message.content for part in mine) == choice.message.content
        assert [token for part in mine for token in part.tokens] == list(choice.tokens)
        assert (mine[-1].usage, mine[-1].seed) == (choice.usage, choice.seed)
        assert len(choice.tokens) == choice.usage.completion_tokens
        assert all(len(token.top_logprobs) == 2 for token in choice.tokens)
        assert b"".join(token.text for token in choice.tokens) == choice.message.content.encode()
        assert choice.HasField("timing")
        alone = ChatRequest()
        alone.CopyFrom(request)
        alone.sampling.n, alone.sampling.seed = 1, choice.seed
        assert stub.Chat(alone, timeout=TIMEOUT_S).message == choice.message
    assert answer.receipt.seed == request.sampling.seed
    assert parts[-1].request_id == answer.request_id == "all"


def test_forms_in_a_batch_hold_their_own_items(stub: Any) -> None:
    def item(**constraint: Any) -> Request:
        return Request(
            prompt=PROMPT,
            max_tokens=200,
            sampling=Sampling(temperature=1.0, seed=1, n=2),
            constraint=llm_pb2.Constraint(**constraint) if constraint else None,
        )

    items = [
        item(regex=REGEX),
        item(json_schema='{"enum": [1, "two", null]}'),
        item(json_schema='{"uniqueItems": true}'),
        item(choice=llm_pb2.Choice(choices=["oui", "non"])),
        item(),
    ]
    batch = llm_pb2.BatchGenerateTextRequest(requests=items)
    answers = {each.item: each for each in stub.BatchGenerateText(batch, timeout=TIMEOUT_S)}
    assert sorted(answers) == [0, 1, 2, 3, 4]
    assert [place for place, each in answers.items() if each.HasField("status")] == [2]
    assert "constraint.json_schema" in answers[2].status.message
    for place, answer in answers.items():
        if place == 2:
            continue
        alone = stub.GenerateText(items[place], timeout=TIMEOUT_S)
        texts = [sequence.generated_text for sequence in answer.response.sequences]
        assert texts == [sequence.generated_text for sequence in alone.sequences]
        if place == 0:
            assert all(re.fullmatch(REGEX, text) for text in texts)
        if place == 1:
            assert all(json.loads(text) in (1, "two", None) for text in texts)
        if place == 3:
            assert set(texts) <= {"oui", "non"}


@pytest.mark.parametrize("includes_stop", [False, True], ids=["without", "with"])
def test_a_stop_string_cuts_every_sequence_of_a_form(stub: Any, includes_stop: bool) -> None:
    request = Request(
        prompt=PROMPT,
        max_tokens=100,
        sampling=Sampling(temperature=1.0, seed=9, n=4),
        stopping=Stopping(stop_strings=[". "], include_stop=includes_stop),
        constraint=llm_pb2.Constraint(regex=REGEX),
        response_options=ResponseOptions(token_text=True),
    )
    for sequence in stub.GenerateText(request, timeout=TIMEOUT_S).sequences:
        assert re.fullmatch("[a-z]{2,6}" + (r"\. " if includes_stop else ""), sequence.generated_text)
        assert (sequence.stop_string, sequence.finish_reason) == (". ", llm_pb2.FINISH_REASON_STOP)
        generated = b"".join(token.text for token in sequence.tokens).decode()
        assert generated.startswith(sequence.generated_text)
        assert ". " in generated


def prompt_scores(stub: Any, ids: list[int], **fields: Any) -> Response:
    options = ResponseOptions(prompt_logprobs=True, prompt_top_logprobs=2, token_text=True)
    request = Request(prompt_token_ids=ids, max_tokens=1, response_options=options, **fields)
    answer: Response = stub.GenerateText(request, timeout=TIMEOUT_S)
    return answer


def close(found: Any, expected: Any) -> bool:
    """Whether tokens are told alike, but for the last digits of their logprobs."""
    return [token.id for token in found] == [token.id for token in expected] and all(
        math.isclose(one.logprob, other.logprob, abs_tol=1e-4)
        for one, other in zip(found, expected, strict=True)
    )


def test_the_scores_of_a_prompt_that_is_cut_are_those_of_what_is_kept(stubs: Any) -> None:
    stub, ids = stubs[0], ids_of(stubs, PROMPT)
    kept = ids[-7:]
    expected = prompt_scores(stub, kept, cache=FRESH).prompt_info
    stub.GenerateText(Request(prompt_token_ids=kept, max_tokens=1), timeout=TIMEOUT_S)
    for cache in (FRESH, llm_pb2.Cache()):  # the second one finds all of it
        answer = prompt_scores(stub, ids, truncate_prompt_tokens=7, cache=cache)
        assert answer.prompt_info.truncated_tokens == len(ids) - 7
        assert answer.usage.prompt_tokens == 7
        assert close(answer.prompt_info.tokens, expected.tokens)
        assert [t.text for t in answer.prompt_info.tokens] == [t.text for t in expected.tokens]


def test_a_candidate_has_the_scores_of_a_prompt_with_it(stubs: Any) -> None:
    stub, prompt = stubs[0], ids_of(stubs, PROMPT)
    candidates = [ids_of(stubs, text) for text in (" le", "é 😀")]
    request = llm_pb2.ScoreTextRequest(
        prompt_token_ids=prompt,
        candidate_token_ids=[llm_pb2.TokenIds(ids=ids) for ids in candidates],
        top_logprobs=2,
        token_text=True,
    )
    answer = stub.ScoreText(request, timeout=TIMEOUT_S)
    for ids, score in zip(candidates, answer.scores, strict=True):
        told = prompt_scores(stub, [*prompt, *ids]).prompt_info.tokens[len(prompt) :]
        assert close(score.tokens, told)
        for mine, other in zip(score.tokens, told, strict=True):
            assert (mine.text, close(mine.top_logprobs, other.top_logprobs)) == (other.text, True)
        assert math.isclose(score.logprob, math.fsum(token.logprob for token in told), abs_tol=1e-3)


def test_an_object_that_is_helped_to_its_end_ends_by_itself(stubs: Any) -> None:
    stub = stubs[0]
    bias = {token: 12.0 for text in ('"', "}") for token in ids_of(stubs, text)}
    for seed in range(8):
        request = Request(
            prompt=PROMPT,
            max_tokens=400,
            sampling=Sampling(temperature=1.0, seed=seed, logit_bias=bias),
            constraint=llm_pb2.Constraint(json_object=True),
        )
        answer = stub.GenerateText(request, timeout=TIMEOUT_S)
        assert isinstance(json.loads(answer.generated_text), dict)
        assert answer.finish_reason in (llm_pb2.FINISH_REASON_STOP, llm_pb2.FINISH_REASON_EOS)
