"""What a caller may ask for and is told, from the embedded model in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer

from llm_grpc import __version__
from llm_grpc.client import Client, InvalidRequest
from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.v1 import llm_pb2
from tests.rpc.process import ServerProcess

PROMPT = "Translate to French: the cat sees the house."
WILD: dict[str, Any] = {"temperature": 2.0, "max_tokens": 40, "ignore_eos": True, "cache_disabled": True}
"""What makes texts of different seeds different."""

CLOSE = 1e-4
"""Of logprobs in fp32, computed in chunks of another size."""

TOKENIZER = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
EOS_ID = 0


@pytest.fixture(scope="module")
def client(embedded: ServerProcess) -> Iterator[Client]:
    with Client(embedded.address) as connected:
        yield connected


def ids_of(tokens: Iterable[llm_pb2.Token]) -> list[int]:
    return [token.id for token in tokens]


def test_several_sequences_are_what_each_seed_gives(client: Client) -> None:
    answer = client.generate(PROMPT, **WILD, n=4, seed=7)
    alone = [client.generate(PROMPT, **WILD, seed=7 + i) for i in range(4)]
    assert [each.generated_text for each in answer.sequences] == [each.generated_text for each in alone]
    assert [each.seed for each in answer.sequences] == [7, 8, 9, 10]
    assert len({each.generated_text for each in alone}) > 1


def test_the_stream_of_several_sequences_says_which_is_which(client: Client) -> None:
    whole = client.generate(PROMPT, **WILD, n=3, seed=7)
    parts = list(client.stream(PROMPT, **WILD, n=3, seed=7))
    texts = ["".join(part.generated_text for part in parts if part.index == i) for i in range(3)]
    assert texts == [each.generated_text for each in whole.sequences]
    assert [part.sequence for part in parts] == list(range(len(parts)))


def test_the_bytes_of_tokens_are_the_text(client: Client) -> None:
    answer = client.generate(PROMPT, temperature=2.0, seed=1, max_tokens=60, token_text=True)
    assert b"".join(token.text for token in answer.tokens).decode(errors="replace") == answer.generated_text
    for before, after in zip(answer.tokens, answer.tokens[1:], strict=False):
        assert after.text_offset == before.text_offset + len(before.text)


def test_logprobs_of_a_greedy_text_are_those_of_the_likeliest(client: Client) -> None:
    answer = client.generate(PROMPT, logprobs=True, top_logprobs=3, token_text=True, max_tokens=8)
    for token in answer.tokens:
        assert token.top_logprobs[0].id == token.id
        assert token.top_logprobs[0].logprob == token.logprob
        assert token.top_logprobs[0].text == token.text
        logprobs = [top.logprob for top in token.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
        assert 0 < sum(map(math.exp, logprobs)) <= 1 + CLOSE


def test_logprobs_are_the_models_own_whatever_the_sampling(client: Client) -> None:
    sampled = client.generate(PROMPT, **WILD, seed=4, logprobs=True, repetition_penalty=1.2)
    ids = TOKENIZER.encode(PROMPT).ids + ids_of(sampled.tokens)
    told = client.generate(ids, prompt_logprobs=True, max_tokens=1, cache_disabled=True).prompt_info.tokens
    assert [token.logprob for token in told[-len(sampled.tokens) :]] == pytest.approx(
        [token.logprob for token in sampled.tokens], abs=CLOSE
    )


def test_the_whole_prompt_is_scored_whatever_is_cached(client: Client) -> None:
    asked: dict[str, Any] = {"prompt_top_logprobs": 2, "token_text": True, "max_tokens": 1}
    first, second = (client.generate(PROMPT * 4, **asked).prompt_info for _ in range(2))
    ids = TOKENIZER.encode(PROMPT * 4).ids
    for info in (first, second):
        assert ids_of(info.tokens) == ids
        assert not info.tokens[0].HasField("logprob")
        assert all(token.HasField("logprob") and token.logprob <= 0 for token in info.tokens[1:])
        assert all(len(token.top_logprobs) == 2 for token in info.tokens[1:])
        assert b"".join(token.text for token in info.tokens).decode() == PROMPT * 4
    with client.stream(PROMPT * 4, **asked) as stream:
        assert ids_of(next(stream).prompt_info.tokens) == ids
    assert [t.logprob for t in second.tokens] == pytest.approx([t.logprob for t in first.tokens], abs=CLOSE)


def test_the_prompt_is_echoed_and_cut(client: Client) -> None:
    whole = client.generate(PROMPT, echo=True, prompt_tokens=True, max_tokens=1)
    assert whole.prompt_info.text == PROMPT
    assert not whole.prompt_info.truncated_tokens
    kept = len(whole.prompt_info.tokens) - 2
    cut = client.generate(PROMPT, echo=True, prompt_tokens=True, max_tokens=1, truncate_prompt_tokens=kept)
    assert ids_of(cut.prompt_info.tokens) == ids_of(whole.prompt_info.tokens)[2:]
    assert cut.prompt_info.truncated_tokens == 2
    assert cut.usage.prompt_tokens == kept
    assert PROMPT.endswith(cut.prompt_info.text)
    long = client.generate(PROMPT * 200, max_tokens=1, truncate_prompt_tokens=10)
    assert long.usage.prompt_tokens == 10


def test_a_receipt_names_what_computed(client: Client) -> None:
    model = client.get_model()
    receipt = client.generate(PROMPT, receipt=True, temperature=1.0, seed=9, max_tokens=1).receipt
    assert (receipt.model_digest, receipt.weights, receipt.lowering) == (
        model.digest,
        model.weights,
        model.lowering,
    )
    assert (receipt.seed, receipt.version) == (9, __version__)
    assert receipt.runtime.startswith("onnxruntime ")
    assert receipt.provider == "CPUExecutionProvider"


def test_times_add_up(client: Client) -> None:
    timing = client.generate(PROMPT, timing=True, max_tokens=10, ignore_eos=True).timing
    assert min(timing.queue_ms, timing.prefill_ms) >= 0
    assert timing.decode_ms > 0
    assert timing.time_to_first_token_ms == pytest.approx(timing.queue_ms + timing.prefill_ms)


def test_a_stop_token_ends_the_text(client: Client) -> None:
    whole = client.generate(PROMPT, token_text=True)
    stop = whole.tokens[2]
    ended = client.generate(PROMPT, stop_token_ids=[stop.id])
    assert (ended.finish_reason, ended.stop_token_id) == (llm_pb2.FINISH_REASON_STOP, stop.id)
    text = b"".join(token.text for token in whole.tokens[:2]).decode()
    assert ended.generated_text == text
    shown = client.generate(PROMPT, stop_token_ids=[stop.id], include_stop=True)
    assert shown.generated_text == text + stop.text.decode()
    assert ended.usage.completion_tokens == shown.usage.completion_tokens == 3


def test_a_stop_string_may_stay(client: Client) -> None:
    whole = client.generate(PROMPT).generated_text
    stop = whole[3:6]
    assert client.generate(PROMPT, stop=[stop]).generated_text == whole[: whole.index(stop)]
    shown = client.generate(PROMPT, stop=[stop], include_stop=True)
    assert shown.generated_text == whole[: whole.index(stop) + 3]
    assert shown.stop_string == stop


def test_nothing_ends_the_text_before_min_tokens(client: Client) -> None:
    whole = client.generate(PROMPT, tokens=True)
    later = client.generate(PROMPT, tokens=True, min_tokens=30, max_tokens=60)
    end = len(whole.tokens) - 1
    assert ids_of(later.tokens)[:end] == ids_of(whole.tokens)[:end]
    assert EOS_ID not in ids_of(later.tokens)[:30]
    assert later.usage.completion_tokens >= 30


def test_what_may_come_and_what_may_not(client: Client) -> None:
    greedy = ids_of(client.generate(PROMPT, tokens=True).tokens)
    banned = client.generate(PROMPT, tokens=True, banned_token_ids=greedy[:2])
    assert not set(greedy[:2]) & set(ids_of(banned.tokens))
    allowed = client.generate(
        PROMPT, tokens=True, allowed_token_ids=[5, 6], temperature=1.5, seed=3, max_tokens=40
    )
    assert set(ids_of(allowed.tokens)) <= {5, 6, EOS_ID}
    biased = client.generate(PROMPT, tokens=True, logit_bias={77: 100.0}, max_tokens=5)
    assert ids_of(biased.tokens) == [77] * 5


def test_penalties_make_repetition_rare(client: Client) -> None:
    options: dict[str, Any] = {"tokens": True, "ignore_eos": True, "max_tokens": 60}
    plain = ids_of(client.generate(PROMPT, **options).tokens)
    penalised = ids_of(client.generate(PROMPT, **options, presence_penalty=2.0, frequency_penalty=2.0).tokens)
    assert len(set(penalised)) > len(set(plain))


def test_the_configured_penalties_apply_where_none_is_asked_for(client: Client) -> None:
    flags = ("--presence-penalty=2", "--frequency-penalty=2")
    options: dict[str, Any] = {"tokens": True, "ignore_eos": True, "max_tokens": 60}
    wanted = client.generate(PROMPT, **options, presence_penalty=2.0, frequency_penalty=2.0)
    with ServerProcess(*flags) as server, Client(server.address) as other:
        defaults = other.get_model().defaults
        assert (defaults.presence_penalty, defaults.frequency_penalty) == (2, 2)
        assert ids_of(other.generate(PROMPT, **options).tokens) == ids_of(wanted.tokens)


def test_limits_are_told_and_hold(client: Client) -> None:
    limits = client.get_model().limits
    assert (limits.max_sequences, limits.max_top_logprobs, limits.max_token_list) == (16, 20, 1024)
    assert (limits.max_constraint_bytes, limits.max_batch_items) == (65536, 256)
    with pytest.raises(InvalidRequest, match=r"sampling.n: is 17, and must be 1 to 16"):
        client.generate(PROMPT, n=17, temperature=1.0)
    with pytest.raises(InvalidRequest, match=r"response_options.top_logprobs: is 21, and must be 0 to 20"):
        client.generate(PROMPT, top_logprobs=21)
