"""ScoreText: the model's own probabilities, candidate by candidate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llm_grpc.v1 import llm_pb2, llm_pb2_grpc
from llm_grpc.v1.llm_pb2 import ScoreTextRequest as Request
from llm_grpc.v1.llm_pb2 import TokenIds
from tests.rpc.callers import answer, ask, later
from tests.rpc.conftest import Serve, until
from tests.rpc.models import CONTEXT_TOKENS, EOS, write_model_dir
from tests.rpc.process import ServerProcess
from tests.rpc.test_bad_input import details
from tests.unit.scripted_runner import ScriptedRunner, scored

LIMIT = CONTEXT_TOKENS - 1


def ids_of(model: Path, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    return ids


def assert_scored(
    response: llm_pb2.ScoreTextResponse, prompt: list[int], candidates: list[list[int]]
) -> None:
    """Every token has the score of its place, and the sums are those of doubles."""
    assert len(response.scores) == len(candidates)
    for score, ids in zip(response.scores, candidates, strict=True):
        assert [token.id for token in score.tokens] == ids
        expected = [scored([*prompt, *ids[:at]], token).logprob for at, token in enumerate(ids)]
        assert [token.logprob for token in score.tokens] == expected
        assert score.logprob == math.fsum(expected)
    assert response.usage.prompt_tokens == len(prompt)
    assert response.usage.completion_tokens == sum(map(len, candidates))


async def test_each_candidate_is_scored_after_the_prompt(serve: Serve, scripted_model: Path) -> None:
    candidates = [" cat", " dog", "é", " cat", " a longer one of them"]
    async with serve(ScriptedRunner(), engine={"chunk_tokens": 5}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = Request(prompt="the black", candidates=candidates, request_id="id")
        response = await stub.ScoreText(request, timeout=30)
        ids = [ids_of(scripted_model, text) for text in candidates]
        assert_scored(response, ids_of(scripted_model, "the black"), ids)
        assert (response.request_id, response.model) == ("id", "scripted")
        assert response.scores[0] == response.scores[3]
        assert not response.scores[0].tokens[0].text
        by_ids = Request(
            prompt_token_ids=ids_of(scripted_model, "the black"),
            candidate_token_ids=[TokenIds(ids=each) for each in ids],
        )
        again = await stub.ScoreText(by_ids, timeout=30)
        assert again.scores == response.scores
        assert server.admission.held == 0


async def test_tops_and_texts_where_they_are_asked_for(serve: Serve, scripted_model: Path) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = Request(prompt="a", candidates=["bé", "c"], top_logprobs=2, token_text=True)
        response = await stub.ScoreText(request, timeout=30)
    tokens = response.scores[0].tokens
    assert b"".join(token.text for token in tokens) == "bé".encode()
    offsets = [token.text_offset for token in tokens]
    assert offsets == [len(b"".join(t.text for t in tokens[:at])) for at in range(len(tokens))]
    history = ids_of(scripted_model, "a")
    for token in tokens:
        likeliest = scored(history, token.id, 2).top
        assert [(top.id, top.logprob) for top in token.top_logprobs] == list(likeliest)
        assert [top.text for top in token.top_logprobs] == [b"%c" % (ord("!") + top) for top, _ in likeliest]
        history.append(token.id)


async def test_more_candidates_than_the_server_holds(serve: Serve, scripted_model: Path) -> None:
    candidates = [f"c{n}" for n in range(256)]
    async with serve(ScriptedRunner(), engine={"max_running": 2, "max_waiting": 1}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        response = await stub.ScoreText(Request(prompt="p", candidates=candidates), timeout=60)
        ids = [ids_of(scripted_model, text) for text in candidates]
        assert_scored(response, ids_of(scripted_model, "p"), ids)
        assert server.admission.held == 0


async def test_a_full_server_refuses_and_a_busy_one_scores_one_after_the_other(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner, engine={"max_running": 2, "max_waiting": 0}) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        first = later(answer(stub, ask("go on", 40)))
        await runner.at_run()
        score = later(stub.ScoreText(Request(prompt="p", candidates=[*"abc"]), timeout=30))
        await until(lambda: server.admission.held == 2)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.ScoreText(Request(prompt="p", candidates=["a"]), timeout=30)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        while not score.done():
            await runner.next_run()
        assert not first.done()
        assert len((await score).scores) == 3
        runner.open()
        assert (await first).usage.completion_tokens == 40


async def test_a_failed_run_ends_the_call_and_frees_all(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.faults = [None, RuntimeError("broken")]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.ScoreText(Request(prompt="p", candidates=[*"abcdefgh"]), timeout=30)
        assert error.value.code() is grpc.StatusCode.INTERNAL
        assert details(error.value, error_details_pb2.ErrorInfo).reason == "ENGINE_FAILED"
        await until(lambda: server.admission.held == 0)


async def test_a_caller_that_leaves_frees_all(serve: Serve) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (server, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        runner.gate()
        call = stub.ScoreText(Request(prompt="p", candidates=[*"abcdefgh"]), timeout=30)
        await runner.at_run()
        call.cancel()
        await until(lambda: server.admission.held == 0)
        runner.open()


async def test_an_empty_prompt_needs_a_tokenizer_that_begins_every_text(serve: Serve, tmp_path: Path) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await llm_pb2_grpc.LLMServiceStub(channel).ScoreText(Request(candidates=["a"]), timeout=30)
        violation = details(error.value, error_details_pb2.BadRequest).field_violations[0]
        assert (violation.field, violation.description[:12]) == ("prompt", "has 0 tokens")
    model = write_model_dir(tmp_path / "bos", adds_token=True)
    async with serve(ScriptedRunner(), model=model) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        response = await stub.ScoreText(Request(candidates=["ab"]), timeout=30)
    assert_scored(response, [EOS], [ids_of(model, "ab")[1:]])


BAD: list[tuple[Request, str, str]] = [
    (Request(prompt="a"), "candidates", "has 0 entries, and must have 1 to 256"),
    (Request(prompt="a", candidates=["b"] * 257), "candidates", "has 257 entries, and must have 1 to 256"),
    (Request(prompt="a", candidates=["b", ""]), "candidates[1]", "must not be empty"),
    (
        Request(prompt="a", candidate_token_ids=[TokenIds(ids=[1]), TokenIds()]),
        "candidate_token_ids[1]",
        "must not be empty",
    ),
    (
        Request(prompt="a", candidates=["b"], candidate_token_ids=[TokenIds(ids=[1])]),
        "candidate_token_ids",
        "must be empty where there are candidates",
    ),
    (
        Request(prompt="a", candidate_token_ids=[TokenIds(ids=[1, 257])]),
        "candidate_token_ids[0].ids[1]",
        "is 257, and must be 0 to 256",
    ),
    (
        Request(prompt="a", prompt_token_ids=[1], candidates=["b"]),
        "prompt_token_ids",
        "must be empty where there is a prompt",
    ),
    (
        Request(prompt_token_ids=[-1], candidates=["b"]),
        "prompt_token_ids[0]",
        "is -1, and must be 0 to 256",
    ),
    (
        Request(prompt_token_ids=[1] * (LIMIT + 1), candidates=["b"]),
        "prompt_token_ids",
        f"has {LIMIT + 1} tokens, and the limit is {LIMIT}",
    ),
    (
        Request(prompt="a" * 60, candidates=["bcd", "bcde"]),
        "candidates[1]",
        f"has 4 tokens after a prompt of 60, and {LIMIT} are the limit",
    ),
    (
        Request(prompt="a" * 60, candidate_token_ids=[TokenIds(ids=[1] * 4)]),
        "candidate_token_ids[0]",
        f"has 4 tokens after a prompt of 60, and {LIMIT} are the limit",
    ),
    (Request(prompt="a", candidates=["b"], top_logprobs=21), "top_logprobs", "is 21, and must be 0 to 20"),
    (Request(prompt="a", candidates=["b"], top_logprobs=-1), "top_logprobs", "is -1, and must be 0 to 20"),
    (
        Request(prompt="a", candidates=["b"], cache=llm_pb2.Cache(salt="x" * 257)),
        "cache.salt",
        "has 257 bytes of UTF-8, and the limit is 256",
    ),
]


@pytest.mark.parametrize(("request_", "field", "problem"), BAD, ids=lambda value: str(value)[:40])
async def test_a_bad_field_is_named(serve: Serve, request_: Request, field: str, problem: str) -> None:
    async with serve(ScriptedRunner()) as (server, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await llm_pb2_grpc.LLMServiceStub(channel).ScoreText(request_, timeout=30)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        violation = details(error.value, error_details_pb2.BadRequest).field_violations[0]
        assert (violation.field, violation.description) == (field, problem)
        await until(lambda: server.admission.held == 0)


async def test_what_this_server_does_not_have(serve: Serve) -> None:
    async with serve(ScriptedRunner()) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        for request, code in (
            (Request(prompt="a", candidates=["b"], adapter="x"), grpc.StatusCode.FAILED_PRECONDITION),
            (Request(prompt="a", candidates=["b"], model="other"), grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.ScoreText(request, timeout=30)
            assert error.value.code() is code


texts = st.text(min_size=1, max_size=12)


@settings(max_examples=20, deadline=None)
@given(prompt=texts, candidates=st.lists(texts, min_size=1, max_size=5))
def test_a_candidate_is_scored_as_if_it_were_alone(
    embedded: ServerProcess, prompt: str, candidates: list[str]
) -> None:
    """fp32 sums in another order move a logarithm by about 1e-6 a token."""
    with embedded.channel() as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)

        def score(*texts: str) -> Any:
            return stub.ScoreText(Request(prompt=prompt, candidates=texts), timeout=60)

        together = score(*candidates)
        alone = [score(text).scores[0] for text in candidates]
    for one, among in zip(alone, together.scores, strict=True):
        assert [token.id for token in one.tokens] == [token.id for token in among.tokens]
        assert among.logprob == pytest.approx(one.logprob, abs=1e-4)
        assert all(token.logprob <= 0 for token in one.tokens)


def test_the_likeliest_continuation_is_what_the_model_says(embedded: ServerProcess) -> None:
    prompt = "Translate to French: the cat"
    with embedded.channel() as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        said = stub.GenerateText(
            ask(prompt, 8, response_options=llm_pb2.ResponseOptions(tokens=True)), timeout=60
        )
        ids = [token.id for token in said.tokens]
        others = [[*ids[:-1], (ids[-1] + 1) % 900], [ids[0], *ids]]
        request = Request(
            prompt=prompt, candidate_token_ids=[TokenIds(ids=each) for each in (ids, *others)], top_logprobs=1
        )
        scored = stub.ScoreText(request, timeout=60)
    assert [token.top_logprobs[0].id for token in scored.scores[0].tokens] == ids, "greedy is the likeliest"
    assert scored.scores[0].logprob > max(score.logprob for score in scored.scores[1:])


@pytest.mark.parametrize("cache", [llm_pb2.Cache(), llm_pb2.Cache(disabled=True)], ids=["cached", "alone"])
async def test_the_prompt_is_computed_once(serve: Serve, cache: llm_pb2.Cache) -> None:
    runner = ScriptedRunner()
    async with serve(runner) as (_, channel):
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        request = Request(prompt="p" * 40, candidates=["abc", "abd", "x", "yz"], cache=cache)
        response = await stub.ScoreText(request, timeout=30)
        computed = sum(plan.num_tokens for plan in runner.plans)
        # The prompt's last token tells of a candidate's first one, so it is each candidate's own.
        assert computed <= 40 + 9 + 4
        assert response.usage.cached_tokens == 0
        again = await stub.ScoreText(request, timeout=30)
        assert again.scores == response.scores
        assert (again.usage.cached_tokens > 0) is not cache.disabled
