"""Random valid requests to the embedded model: whatever is asked, the answer keeps its promises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response
from tests.rpc.process import HANG_S, ServerProcess

EOS, STOP, LENGTH, CONTEXT = (
    llm_pb2.FINISH_REASON_EOS,
    llm_pb2.FINISH_REASON_STOP,
    llm_pb2.FINISH_REASON_LENGTH,
    llm_pb2.FINISH_REASON_CONTEXT_LIMIT,
)
PROMPTS = ("Translate to French: the black cat", "a", "Summarise: é😀 日本", " \n\t", "x" * 60)
STOPS = ("e", " ", "le ", "\n", "chat", "é", "😀")

LAST_ALONE = {
    "usage", "request_id", "seed", "model", "timing", "receipt", "stop_string", "stop_token_id",
}  # fmt: skip
"""What the last message of a sequence has, and no other."""

_shares = st.floats(0.0625, 1, width=32)
_penalties = st.floats(-2, 2, width=32)
_ids = st.integers(0, 500)


def _maybe(strategy: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | strategy


@st.composite
def samplings(draw: st.DrawFn) -> llm_pb2.Sampling:
    """How tokens are chosen, within the limits."""
    banned = draw(st.lists(_ids, max_size=4))
    allowed = draw(st.just([]) | st.lists(_ids, min_size=8, max_size=40, unique=True))
    temperature = draw(st.sampled_from((None, 0.0, 0.3, 1.0, 2.0)))
    sampling = llm_pb2.Sampling(
        temperature=temperature,
        top_p=draw(_maybe(_shares)),
        top_k=draw(st.none() | st.integers(0, 50)),
        min_p=draw(_maybe(_shares)),
        typical_p=draw(_maybe(_shares)),
        seed=draw(st.none() | st.integers(0, 2**64 - 1)),
        repetition_penalty=draw(_maybe(st.floats(0.5, 3, width=32))),
        presence_penalty=draw(_maybe(_penalties)),
        frequency_penalty=draw(_maybe(_penalties)),
        logit_bias=draw(st.dictionaries(_ids, st.floats(-100, 100, width=32), max_size=4)),
        banned_token_ids=banned,
        allowed_token_ids=allowed,
    )
    if temperature:
        sampling.n = draw(st.integers(1, 4))
    return sampling


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request that has to be served."""
    request = Request(prompt=draw(st.sampled_from(PROMPTS)), max_tokens=draw(st.integers(1, 24)))
    request.sampling.CopyFrom(draw(samplings()))
    request.stopping.CopyFrom(
        llm_pb2.Stopping(
            stop_strings=draw(st.lists(st.sampled_from(STOPS), max_size=3)),
            stop_token_ids=draw(st.lists(_ids, max_size=3)),
            include_stop=draw(st.booleans()),
            min_tokens=draw(st.integers(0, request.max_tokens)),
            ignore_eos=draw(st.booleans()),
        )
    )
    flags = st.booleans()
    request.response_options.CopyFrom(
        llm_pb2.ResponseOptions(
            tokens=True, token_text=True, logprobs=draw(flags), top_logprobs=draw(st.integers(0, 4)),
            prompt_logprobs=draw(flags), prompt_tokens=draw(flags), echo=draw(flags), timing=draw(flags),
            receipt=draw(flags),
        )
    )  # fmt: skip
    request.truncate_prompt_tokens = draw(st.sampled_from((0, 1, 5)))
    request.priority = draw(st.integers(-100, 100))
    request.request_id = draw(st.sampled_from(("", "one", "é" * 64)))
    request.cache.disabled = draw(flags)
    return request


class Asked:
    """A connection, and what the server says of its model."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.llm = llm_pb2_grpc.LLMServiceStub(channel)
        request = model_pb2.GetModelRequest()
        self.model = model_pb2_grpc.ModelServiceStub(channel).GetModel(request, timeout=HANG_S).model


@pytest.fixture(scope="module")
def asked(embedded: ServerProcess) -> Iterator[Asked]:
    with embedded.channel() as channel:
        yield Asked(channel)


def _joined(messages: list[Response]) -> list[Response]:
    """The sequences of a stream, each as one message."""
    sequences: dict[int, Response] = {}
    for number, message in enumerate(messages):
        assert message.sequence == number
        whole = sequences.setdefault(message.index, Response())
        assert not whole.finish_reason, "a message after the last one"
        assert message.finish_reason or not {field.name for field, _ in message.ListFields()} & LAST_ALONE
        assert not message.HasField("prompt_info") or (number, message.index) == (0, 0)
        text = whole.generated_text + message.generated_text
        whole.MergeFrom(message)
        whole.generated_text = text
        whole.sequence = 0
    return [sequences[index] for index in sorted(sequences)]


def _comparable(message: Response) -> Response:
    """Without what depends on who else asks."""
    copy = Response()
    copy.CopyFrom(message)
    copy.ClearField("timing")
    copy.usage.cached_tokens = 0
    for token in (*copy.tokens, *copy.prompt_info.tokens):
        _without_logprobs(token)
    return copy


def _without_logprobs(token: llm_pb2.Token) -> None:
    """Their last digits depend on what of the prompt was cached, and with them the order of equals."""
    if token.HasField("logprob"):
        token.logprob = 0
    del token.top_logprobs[:]


def _logprobs(tokens: Iterable[llm_pb2.Token]) -> list[float]:
    return [
        each for token in tokens for each in (token.logprob, *(top.logprob for top in token.top_logprobs))
    ]


def _check_sequence(request: Request, sequence: Response | llm_pb2.GeneratedSequence) -> None:
    sampling, stopping = request.sampling, request.stopping
    reason, text, tokens = sequence.finish_reason, sequence.generated_text, sequence.tokens
    ids = [token.id for token in tokens]
    assert len(ids) == sequence.usage.completion_tokens <= request.max_tokens
    assert (reason == LENGTH) <= (len(ids) == request.max_tokens)
    assert reason in (EOS, STOP, LENGTH, CONTEXT)
    assert (reason == EOS) <= (not stopping.ignore_eos)
    if reason in (EOS, STOP) and not sequence.stop_string:
        assert ids[-1] == sequence.stop_token_id
        assert len(ids) > stopping.min_tokens
    if sequence.stop_string:
        assert sequence.stop_string in stopping.stop_strings
        assert text.endswith(sequence.stop_string) or not stopping.include_stop
    for stop in stopping.stop_strings if not stopping.min_tokens else ():
        at = text.find(stop)
        assert at < 0 or (stopping.include_stop and sequence.stop_string and at + len(stop) == len(text))
    assert not set(ids) & set(sampling.banned_token_ids)
    if sampling.allowed_token_ids and stopping.ignore_eos:
        assert set(ids) <= set(sampling.allowed_token_ids)
    end = 0
    for token in tokens:
        assert token.text_offset == end
        end += len(token.text)
        _check_logprobs(request.response_options, token)
    if reason in (LENGTH, CONTEXT) and "\ufffd" not in text:
        assert b"".join(token.text for token in tokens) == text.encode()


def _check_logprobs(options: llm_pb2.ResponseOptions, token: llm_pb2.Token) -> None:
    assert token.HasField("logprob") == bool(options.logprobs or options.top_logprobs)
    assert token.logprob <= 0
    found = [top.logprob for top in token.top_logprobs]
    assert len(found) == options.top_logprobs
    assert found == sorted(found, reverse=True)
    assert sum(map(math.exp, found)) <= 1 + 1e-5


def _check(asked: Asked, request: Request) -> None:
    request.sampling.seed = request.sampling.seed  # streamed and whole, the same draws
    answer = asked.llm.GenerateText(request, timeout=HANG_S)
    streamed = _joined(list(asked.llm.StreamGenerateText(request, timeout=HANG_S)))
    number = max(request.sampling.n, 1)
    assert len(streamed) == number
    assert len(answer.sequences) == (number if number > 1 else 0)
    first = _comparable(answer)
    first.ClearField("sequences")
    assert first == _comparable(streamed[0])
    sequences: Sequence[Response | llm_pb2.GeneratedSequence] = answer.sequences or streamed
    for index, sequence in enumerate(sequences):
        assert sequence.index == index
        assert sequence.seed == (request.sampling.seed + index) % 2**64
        assert sequence.generated_text == streamed[index].generated_text
        same = streamed[index].tokens
        assert [(token.id, token.text) for token in sequence.tokens] == [(t.id, t.text) for t in same]
        assert _logprobs(sequence.tokens) == pytest.approx(_logprobs(same), abs=1e-3)
        _check_sequence(request, sequence)
    assert answer.request_id == request.request_id
    assert answer.model == asked.model.name
    options = request.response_options
    assert answer.HasField("timing") == options.timing
    assert answer.HasField("receipt") == options.receipt
    if request.truncate_prompt_tokens:
        assert answer.usage.prompt_tokens <= request.truncate_prompt_tokens
    if options.prompt_tokens or options.prompt_logprobs:
        assert len(answer.prompt_info.tokens) == answer.usage.prompt_tokens


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(SETTINGS, max_examples=60)
@given(wanted=requests())
def test_random_requests(asked: Asked, wanted: Request) -> None:
    _check(asked, wanted)


@pytest.mark.slow
@settings(SETTINGS, max_examples=3_000)
@given(wanted=requests())
def test_many_random_requests(asked: Asked, wanted: Request) -> None:
    _check(asked, wanted)
