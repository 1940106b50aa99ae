"""The unary answer is the stream, joined by index, whatever is asked for: over a runner that says other
tokens to each seed.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_grpc.engine.step_plan import Sample, StepPlan, StepResult, TokenScore
from llm_grpc.engine.warm_up import WARM_UP
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import GenerateTextResponse as Response
from tests.rpc.conftest import Serve
from tests.rpc.models import EOS
from tests.unit.scripted_runner import HANG_S, ScriptedRunner


class SeededRunner(ScriptedRunner):
    """Its tokens are a function of a request's history and its seed, and their scores one of the token."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step, as ``ModelRunner`` says."""
        result = super().run(plan)
        if plan.samples and plan.samples[0].params is WARM_UP:
            return result
        tokens = [_token(token, sample) for token, sample in zip(result.tokens, plan.samples, strict=True)]
        scores = {
            at: TokenScore(-token / 256, ((token, -token / 256), (7, -9.0))[: sample.params.num_logprobs])
            for at, (token, sample) in enumerate(zip(tokens, plan.samples, strict=True))
            if sample.params.num_logprobs is not None
        }
        return replace(result, tokens=tokens, logprobs=scores)


def _token(token: int, sample: Sample) -> int:
    """Any id of the vocabulary, the end of the sequence now and then."""
    chosen = (token * 37 + sample.params.seed * 11) % 61
    return EOS if chosen == 0 else chosen * 4


flags = st.booleans()
requests = st.builds(
    lambda prompt, **fields: Request(cache=llm_pb2.Cache(disabled=True), **prompt, **fields),
    st.one_of(
        st.fixed_dictionaries({"prompt": st.text("ab é😀", min_size=1, max_size=12)}),
        st.fixed_dictionaries({"prompt_token_ids": st.lists(st.integers(0, 256), min_size=1, max_size=20)}),
    ),
    max_tokens=st.integers(1, 24),
    sampling=st.builds(
        llm_pb2.Sampling, temperature=st.just(1.0), seed=st.integers(0, 2**64 - 1), n=st.integers(1, 4)
    ),
    stopping=st.builds(
        llm_pb2.Stopping,
        stop_strings=st.lists(st.text("aeilmq .", min_size=1, max_size=2), max_size=3),
        stop_token_ids=st.lists(st.integers(0, 61).map(lambda i: 4 * i), max_size=3),
        include_stop=flags,
        ignore_eos=flags,
    ),
    response_options=st.builds(
        llm_pb2.ResponseOptions,
        tokens=flags,
        logprobs=flags,
        top_logprobs=st.integers(0, 2),
        token_text=flags,
        prompt_tokens=flags,
        echo=flags,
        timing=flags,
        receipt=flags,
    ),
    truncate_prompt_tokens=st.integers(0, 8),
)


def joined(parts: list[Response]) -> Response:
    """What the unary answer must be."""
    wholes = [_joined([part for part in parts if part.index == i]) for i in sorted({p.index for p in parts})]
    answer = Response()
    answer.CopyFrom(wholes[0])
    if len(wholes) > 1:
        for whole in wholes:
            message = answer.sequences.add()
            fields = {field.name for field in message.DESCRIPTOR.fields}
            for field, value in whole.ListFields():
                if field.name not in fields:
                    continue
                if field.is_repeated:
                    getattr(message, field.name).extend(value)
                elif field.message_type:
                    getattr(message, field.name).CopyFrom(value)
                else:
                    setattr(message, field.name, value)
    return answer


def _joined(parts: list[Response]) -> Response:
    whole = Response()
    whole.CopyFrom(parts[-1])
    whole.generated_text = "".join(part.generated_text for part in parts)
    whole.ClearField("tokens")
    whole.tokens.extend(token for part in parts for token in part.tokens)
    if parts[0].HasField("prompt_info"):
        whole.prompt_info.CopyFrom(parts[0].prompt_info)
    whole.sequence = 0
    return whole


def without_times(answer: Response, *, asked: bool) -> Response:
    """The answer but for what depends on the moment and on who else asks."""
    messages: list[Response | llm_pb2.GeneratedSequence] = [answer, *answer.sequences]
    for message in messages:
        assert message.HasField("timing") is asked
        message.ClearField("timing")
        message.usage.ClearField("cached_tokens")
    return answer


def check_stream(request: Request, parts: list[Response]) -> None:
    """What a stream promises of its messages, whatever they say."""
    assert [part.sequence for part in parts] == list(range(len(parts)))
    options = request.response_options
    asks_prompt = options.prompt_tokens or options.echo or request.truncate_prompt_tokens > 0
    assert [part.HasField("prompt_info") for part in parts] == [asks_prompt] + [False] * (len(parts) - 1)
    assert parts[0].index == 0 or not asks_prompt
    has_tokens = options.tokens or options.logprobs or options.token_text or options.top_logprobs > 0
    for index in range(request.sampling.n):
        own = [part for part in parts if part.index == index]
        assert [bool(part.finish_reason) for part in own] == [False] * (len(own) - 1) + [True]
        assert own[-1].seed == (request.sampling.seed + index) % 2**64
        assert own[-1].HasField("receipt") is options.receipt
        tokens = [token for part in own for token in part.tokens]
        assert len(tokens) == (own[-1].usage.completion_tokens if has_tokens else 0)
        assert all(
            token.HasField("logprob") is (options.logprobs or options.top_logprobs > 0) for token in tokens
        )
        assert all(len(token.top_logprobs) == options.top_logprobs for token in tokens)
        if options.token_text and own[-1].stop_string == "":
            told = b"".join(token.text for token in tokens).decode(errors="replace")
            assert told == "".join(part.generated_text for part in own)


async def exchange(serve: Serve, asked: list[Request]) -> None:
    """Ask for all at once, whole and as streams, and compare."""
    async with serve(SeededRunner(), engine={"max_running": 4, "max_waiting": 64}) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        wholes = [stub.GenerateText(request, timeout=HANG_S) for request in asked]
        streams = [read(stub.StreamGenerateText(request, timeout=HANG_S)) for request in asked]
        answers, parts = await asyncio.gather(*wholes), await asyncio.gather(*streams)
    for request, answer, messages in zip(asked, answers, parts, strict=True):
        check_stream(request, messages)
        timed = request.response_options.timing
        assert without_times(answer, asked=timed) == without_times(joined(messages), asked=timed)


async def read(call: grpc.aio.UnaryStreamCall[Request, Response]) -> list[Response]:
    return [message async for message in call]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(requests, min_size=1, max_size=4))
def test_unary_is_the_joined_stream_by_index(serve: Serve, asked: list[Request]) -> None:
    asyncio.run(exchange(serve, asked))


@pytest.mark.parametrize("n", [1, 3])
async def test_sequences_are_there_where_there_are_several(serve: Serve, n: int) -> None:
    async with serve(SeededRunner()) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        sampling = llm_pb2.Sampling(temperature=1, seed=5, n=n)
        answer = await stub.GenerateText(Request(prompt="a", max_tokens=9, sampling=sampling), timeout=HANG_S)
        alone = [
            await stub.GenerateText(
                Request(prompt="a", max_tokens=9, sampling=llm_pb2.Sampling(temperature=1, seed=5 + i)),
                timeout=HANG_S,
            )
            for i in range(n)
        ]
    assert [each.index for each in answer.sequences] == ([] if n == 1 else list(range(n)))
    assert (answer.generated_text, answer.index, answer.seed) == (alone[0].generated_text, 0, 5)
    assert [each.generated_text for each in answer.sequences] == [
        each.generated_text for each in alone if n > 1
    ]


async def test_a_slow_reader_of_several_sequences_gets_all_of_them(serve: Serve) -> None:
    """It takes one message, and the others when all has been computed: no message is lost or comes twice."""
    runner = SeededRunner()
    request = Request(
        prompt="a",
        max_tokens=20,
        sampling=llm_pb2.Sampling(temperature=1, seed=3, n=3),
        stopping=llm_pb2.Stopping(ignore_eos=True),
        response_options=llm_pb2.ResponseOptions(token_text=True),
    )
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        messages = aiter(stub.StreamGenerateText(request, timeout=HANG_S))
        parts = [await anext(messages)]
        async with asyncio.timeout(HANG_S):
            await server.admission.idle()
        parts += [message async for message in messages]
    check_stream(request, parts)
    assert all(sum(len(p.tokens) for p in parts if p.index == index) == 20 for index in range(3))


async def test_leaving_several_sequences_frees_the_slots_of_all(serve: Serve) -> None:
    runner = SeededRunner()
    request = Request(
        prompt="a",
        max_tokens=20,
        sampling=llm_pb2.Sampling(temperature=1, seed=3, n=3),
        stopping=llm_pb2.Stopping(ignore_eos=True),
    )
    async with serve(runner, engine={"max_running": 3, "max_waiting": 0}) as (server, channel):
        runner.gate()
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        call = stub.StreamGenerateText(request, timeout=HANG_S)
        await runner.at_run()
        await runner.next_run()
        call.cancel()
        async with asyncio.timeout(HANG_S):
            await server.admission.idle()
        runner.open()
        heir = await stub.GenerateText(request, timeout=HANG_S)
    assert [each.usage.completion_tokens for each in heir.sequences] == [20] * 3
