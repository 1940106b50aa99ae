"""The embedded model, served by a process: one request, many at once, whole and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.manifest import manifest_digest
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response
from tests.rpc.process import ServerProcess

PROMPT = "Translate to French: the cat sees the house."

FRESH = llm_pb2.Cache(disabled=True)
"""Each answer is computed from the prompt's first token on, and says so: two of them are equal bit by bit."""

samplings = st.builds(
    llm_pb2.Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.3, 2.0]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 20]),
    seed=st.integers(0, 2**64 - 1),
    min_p=st.sampled_from([0.0, 0.1]),
    typical_p=st.sampled_from([1.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, 1023), st.floats(-10, 10, width=32), max_size=3),
    banned_token_ids=st.lists(st.integers(0, 1023), max_size=3),
)
prompts = st.one_of(
    st.fixed_dictionaries({"prompt": st.one_of(st.just(PROMPT), st.text(min_size=1, max_size=80))}),
    st.fixed_dictionaries({"prompt_token_ids": st.lists(st.integers(0, 1023), min_size=1, max_size=80)}),
)
requests = st.builds(
    lambda prompt, **fields: Request(**prompt, **fields),
    prompts,
    max_tokens=st.integers(1, 48),
    sampling=samplings,
    stopping=st.builds(
        llm_pb2.Stopping,
        stop_strings=st.lists(st.text("aeil .", min_size=1, max_size=3), max_size=3),
        ignore_eos=st.booleans(),
    ),
    response_options=st.builds(
        llm_pb2.ResponseOptions,
        tokens=st.booleans(),
        top_logprobs=st.integers(0, 2),
        token_text=st.booleans(),
        prompt_tokens=st.booleans(),
        echo=st.booleans(),
        receipt=st.booleans(),
    ),
    cache=st.just(FRESH),
)


@pytest.fixture(scope="module")
def stub(embedded: ServerProcess) -> Iterator[llm_pb2_grpc.LLMServiceStub]:
    with embedded.channel() as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


def joined(parts: list[Response]) -> Response:
    """What the unary reply must be."""
    whole = Response()
    whole.CopyFrom(parts[-1])
    whole.generated_text = "".join(part.generated_text for part in parts)
    whole.ClearField("tokens")
    whole.tokens.extend(token for part in parts for token in part.tokens)
    if parts[0].HasField("prompt_info"):
        whole.prompt_info.CopyFrom(parts[0].prompt_info)
    whole.sequence = 0
    return whole


@settings(max_examples=60, deadline=None)
@given(request=requests)
def test_unary_is_the_joined_stream(stub: llm_pb2_grpc.LLMServiceStub, request: Request) -> None:
    parts = list(stub.StreamGenerateText(request, timeout=60))
    assert [part.sequence for part in parts] == list(range(len(parts)))
    assert [bool(part.finish_reason) for part in parts] == [False] * (len(parts) - 1) + [True]
    options = request.response_options
    has_tokens = options.tokens or options.token_text or options.top_logprobs > 0
    assert all(bool(part.tokens) is has_tokens for part in parts)
    assert stub.GenerateText(request, timeout=60) == joined(parts)


@settings(max_examples=60, deadline=None)
@given(request=requests)
def test_limits_and_stops_hold(stub: llm_pb2_grpc.LLMServiceStub, request: Request) -> None:
    answer = stub.GenerateText(request, timeout=60)
    assert 1 <= answer.usage.completion_tokens <= request.max_tokens
    assert not any(stop in answer.generated_text for stop in request.stopping.stop_strings)
    if request.response_options.tokens:
        assert len(answer.tokens) == answer.usage.completion_tokens
    match answer.finish_reason:
        case llm_pb2.FINISH_REASON_LENGTH:
            assert answer.usage.completion_tokens == request.max_tokens
            assert answer.WhichOneof("stop_match") is None
        case llm_pb2.FINISH_REASON_STOP:
            assert answer.stop_string in request.stopping.stop_strings
        case llm_pb2.FINISH_REASON_EOS:
            assert not request.stopping.ignore_eos
            assert answer.WhichOneof("stop_match") == "stop_token_id"
        case _:
            pytest.fail(f"unexpected finish reason in {answer}")
    assert answer.seed == request.sampling.seed


def many_requests(*, disabled: bool) -> list[Request]:
    """Different prompts, lengths and ways of sampling, some greedy."""
    return [
        Request(
            prompt=PROMPT * (1 + i % 5) + str(i),
            cache=llm_pb2.Cache(disabled=disabled),
            max_tokens=4 + 7 * i % 60,
            sampling=llm_pb2.Sampling(temperature=(0.0, 0.8, 1.6)[i % 3], top_p=0.95, seed=i),
        )
        for i in range(96)
    ]


@pytest.mark.parametrize("disabled", [True, False], ids=["fresh", "cached"])
async def test_many_at_once_are_as_each_alone(embedded: ServerProcess, disabled: bool) -> None:
    """fp32 sums in another order move a logit by about 1e-6; a choice that was that close may differ."""
    wanted = many_requests(disabled=disabled)
    async with embedded.aio_channel() as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        alone = [await stub.GenerateText(request, timeout=60) for request in many_requests(disabled=True)]
        together = await asyncio.gather(*(stub.GenerateText(request, timeout=60) for request in wanted))
    assert any(answer.usage.cached_tokens for answer in together) is not disabled
    for answer in together:
        answer.usage.ClearField("cached_tokens")
    different = [i for i, (a, b) in enumerate(zip(alone, together, strict=True)) if a != b]
    assert len(different) <= 1, f"requests {different} of {len(wanted)} differ"


def test_a_prompt_of_ids_is_the_prompt_of_their_text(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    ids = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json")).encode(PROMPT).ids
    tokens = llm_pb2.ResponseOptions(tokens=True)
    text = stub.GenerateText(Request(prompt=PROMPT, response_options=tokens, cache=FRESH), timeout=60)
    request = Request(prompt_token_ids=ids, response_options=tokens, cache=FRESH)
    assert stub.GenerateText(request, timeout=60) == text
    assert text.tokens[-1].id == text.stop_token_id


def test_an_ignored_end_of_sequence_goes_on_to_max_tokens(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    request = Request(prompt=PROMPT, max_tokens=100, response_options=llm_pb2.ResponseOptions(tokens=True))
    ended = stub.GenerateText(request, timeout=60)
    request.stopping.ignore_eos = True
    answer = stub.GenerateText(request, timeout=60)
    assert ended.finish_reason == llm_pb2.FINISH_REASON_EOS
    assert answer.finish_reason == llm_pb2.FINISH_REASON_LENGTH
    assert answer.WhichOneof("stop_match") is None
    assert len(answer.tokens) == 100
    assert answer.tokens[: len(ended.tokens)] == ended.tokens


def test_the_server_draws_a_seed_and_reports_it(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    request = Request(prompt=PROMPT, max_tokens=40, sampling=llm_pb2.Sampling(temperature=2), cache=FRESH)
    first, second = (stub.GenerateText(request, timeout=60) for _ in range(2))
    assert first.seed != second.seed
    request.sampling.seed = first.seed
    assert stub.GenerateText(request, timeout=60) == first


def test_temperature_of_the_request_and_of_sampling(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    """sampling.temperature wins, also when it is 0; the plain field counts where it is not 0."""
    greedy = stub.GenerateText(Request(prompt=PROMPT, cache=FRESH), timeout=60)
    overridden = Request(prompt=PROMPT, temperature=2, sampling=llm_pb2.Sampling(temperature=0), cache=FRESH)
    assert stub.GenerateText(overridden, timeout=60) == greedy
    assert stub.GenerateText(Request(prompt=PROMPT, temperature=2), timeout=60).seed != 0
    assert greedy.seed == 0


def test_text_comes_in_parts_and_the_last_message_counts(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    parts = list(stub.StreamGenerateText(Request(prompt=PROMPT), timeout=60))
    assert len(parts) > 2
    assert not any(part.HasField("usage") for part in parts[:-1])
    assert parts[-1].usage.completion_tokens >= len(parts) - 1
    assert parts[-1].model == "embedded"


def test_a_full_context_ends_the_text(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    whole = stub.GenerateText(Request(prompt=PROMPT), timeout=60)
    context = whole.usage.prompt_tokens + 3
    with ServerProcess(f"--max-context-tokens={context}") as server, server.channel() as channel:
        request = Request(prompt=PROMPT, max_tokens=context - 1)
        answer = llm_pb2_grpc.LLMServiceStub(channel).GenerateText(request, timeout=60)
    assert answer.finish_reason == llm_pb2.FINISH_REASON_CONTEXT_LIMIT
    assert answer.usage.completion_tokens == 3
    assert whole.generated_text.startswith(answer.generated_text)


def test_get_model_reports_limits_defaults_and_digest() -> None:
    flags = ("--max-tokens=7", "--temperature=0.5", "--top-p=0.9", "--top-k=11", "--model-name=mine")
    with ServerProcess(*flags) as server, server.channel() as channel:
        service = model_pb2_grpc.ModelServiceStub(channel)
        model = service.GetModel(model_pb2.GetModelRequest(), timeout=60).model
        assert service.GetModel(model_pb2.GetModelRequest(name="mine"), timeout=60).model == model
        assert (model.name, model.kind) == ("mine", model_pb2.MODEL_KIND_DECODER_ONLY)
        assert (model.limits.context_tokens, model.limits.max_prompt_tokens, model.limits.max_tokens) == (
            1024,
            1023,
            1023,
        )
        assert (model.defaults.max_tokens, model.defaults.top_k) == (7, 11)
        assert (model.defaults.temperature, model.defaults.top_p) == pytest.approx((0.5, 0.9))
        assert model.digest == manifest_digest(EMBEDDED_MODEL)
        answer = llm_pb2_grpc.LLMServiceStub(channel).GenerateText(Request(prompt=PROMPT), timeout=60)
        assert answer.usage.completion_tokens <= 7
        assert answer.seed != 0


def test_a_deadline_that_is_too_short(stub: llm_pb2_grpc.LLMServiceStub) -> None:
    request = Request(prompt=PROMPT, max_tokens=900, sampling=llm_pb2.Sampling(temperature=2))
    with pytest.raises(grpc.RpcError) as error:
        stub.GenerateText(request, timeout=0.001)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
