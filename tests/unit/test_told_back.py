"""Several sequences of one request, and what is told back of tokens, prompt and times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.engine.async_engine import AsyncEngine
from llm_grpc.engine.request import TokenEvent
from llm_grpc.engine.step_plan import TokenScore
from llm_grpc.errors import EngineFailed, PromptTooLong, QueueFull
from llm_grpc.metrics import Metrics, ModelMetrics, Timing
from llm_grpc.sampling_params import FinishReason, SamplingParams
from llm_grpc.text.admission import Admission
from llm_grpc.text.generator import TextGenerator
from llm_grpc.text.text_delta import PromptInfo, TextDelta, TopToken, joined
from llm_grpc.text.text_request import AnswerOptions, NewConstraint, TextRequest
from tests.unit.small_tokenizers import BOS, EOS, byte_level, decode, token_id

TOKENIZER = byte_level()
EOS_ID = token_id(TOKENIZER, EOS)
TOKENS = AnswerOptions(tokens=True, token_text=True)
SAMPLED = SamplingParams(9, temperature=1.0)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.raw.encode(text).ids
    return ids


def letters(text: str) -> list[int]:
    """A token for each character, which are ASCII."""
    return [encode(character)[0] for character in text]


def score_of(token: int) -> TokenScore:
    return TokenScore(-token / 8, ((token, -token / 8), (EOS_ID, -100.0)))


@dataclass
class Call:
    """What the engine was asked for one sequence."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    asked: dict[str, Any]
    closed: bool = False


@dataclass
class ManyEngine:
    """Says to the sequence with a seed what ``says`` has for it, one token at a time, and then ``ends``; the
    last token of those in ``fails`` never comes. It begins with seed 0 after ``late_turns`` of the loop.
    """

    says: dict[int, list[int]]
    ends: FinishReason = FinishReason.LENGTH
    fails: frozenset[int] = frozenset()
    begun_s: float = 0.0
    late_turns: int = 0
    calls: list[Call] = field(default_factory=list)

    def new_group(self) -> int:
        return 77

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, **asked: Any
    ) -> AsyncGenerator[list[TokenEvent], None]:
        call = Call(prompt_ids, params, asked)
        self.calls.append(call)
        tokens = self.says[params.seed]
        scored = prompt_ids[asked["first_score"] :] if asked["first_score"] else []
        try:
            for _ in range(0 if params.seed else self.late_turns):
                await asyncio.sleep(0)
            for at, token in enumerate(tokens):
                await asyncio.sleep(0)
                is_last = at == len(tokens) - 1
                if is_last and params.seed in self.fails:
                    raise EngineFailed("broken")
                yield [
                    TokenEvent(
                        1,
                        token,
                        self.ends if is_last else None,
                        score=score_of(token) if params.num_logprobs is not None else None,
                        prompt_scores=() if at else tuple(map(score_of, scored)),
                        begun_s=0.0 if at else self.begun_s,
                    )
                ]
        finally:
            call.closed = True


def generator_of(
    engine: ManyEngine, limit: int = 16, clock: Callable[[], float] = lambda: 0.0
) -> TextGenerator:
    return TextGenerator(
        TOKENIZER, cast("AsyncEngine", engine), Admission(limit, 0), ModelMetrics(Metrics(clock), "m")
    )


async def read(generator: TextGenerator, request: TextRequest) -> list[TextDelta]:
    async with aclosing(generator.generate(request)) as deltas:
        return [delta async for delta in deltas]


def answers(engine: ManyEngine, request: TextRequest) -> list[TextDelta]:
    deltas = asyncio.run(read(generator_of(engine), request))
    assert all(call.closed for call in engine.calls)
    return joined(deltas)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text("ab \nthe😀é", min_size=1, max_size=12), min_size=1, max_size=5))
def test_each_sequence_gets_what_it_gets_alone(texts: list[str]) -> None:
    seed = 2**64 - 2  # seeds begin again at 0 in the middle
    says = {(seed + i) % 2**64: encode(text) for i, text in enumerate(texts)}
    params = replace(SAMPLED, seed=seed, stop_strings=("ab",))
    request = TextRequest("the cat", params, num_sequences=len(texts), options=TOKENS)
    together = answers(ManyEngine(says), request)
    assert [answer.index for answer in together] == list(range(len(texts)))
    for i, answer in enumerate(together):
        own = (seed + i) % 2**64
        alone = TextRequest("the cat", replace(params, seed=own), options=TOKENS)
        assert answers(ManyEngine(says), alone) == [answer._replace(index=0)]
        assert answer.seed == own


def test_sequences_are_one_group_and_the_prompt_is_scored_once() -> None:
    engine = ManyEngine({5: encode("a"), 6: encode("b"), 7: encode("c")})
    made: list[object] = []

    class Kept:
        def __init__(self) -> None:
            made.append(self)

        def check(self) -> None:
            assert self in made

    constraint = cast("NewConstraint", Kept)

    params = replace(SAMPLED, seed=5, num_prompt_logprobs=2)
    answers(engine, TextRequest("the cat", params, num_sequences=3, constraint=constraint, priority=4))
    assert [call.asked["group"] for call in engine.calls] == [77] * 3
    assert [call.asked["first_score"] for call in engine.calls] == [1, None, None]
    assert [call.params.num_prompt_logprobs for call in engine.calls] == [2, None, None]
    assert [call.asked["priority"] for call in engine.calls] == [4] * 3
    assert [call.asked["constraint"] for call in engine.calls] == made
    assert len(set(map(id, made))) == 3, "each sequence has a state of its own"


def test_a_sequence_alone_is_of_no_group() -> None:
    engine = ManyEngine({0: encode("a")})
    answers(engine, TextRequest("the cat", SamplingParams(9)))
    [call] = engine.calls
    assert call.asked == {"constraint": None, "group": 0, "first_score": None, "priority": 0, "adapter": None}


async def test_each_sequence_takes_a_permit() -> None:
    generator = generator_of(ManyEngine({0: encode("a"), 1: encode("b"), 2: encode("c")}), limit=2)
    with pytest.raises(QueueFull, match="0 requests run or wait, this one has 3 sequences, and the limit is"):
        await read(generator, TextRequest("x", SAMPLED, num_sequences=3))
    assert len(joined(await read(generator, TextRequest("x", SAMPLED, num_sequences=2)))) == 2


async def test_the_failure_of_one_sequence_fails_the_request_and_ends_the_others() -> None:
    engine = ManyEngine({0: letters("aaaaaaaa"), 1: letters("bb")}, fails=frozenset({1}))
    admission = Admission(4, 0)
    generator = TextGenerator(TOKENIZER, cast("AsyncEngine", engine), admission, ModelMetrics(Metrics(), "m"))
    with pytest.raises(EngineFailed):
        await read(generator, TextRequest("x", SAMPLED, num_sequences=2))
    assert all(call.closed for call in engine.calls)
    assert admission.held == 0


async def test_who_leaves_ends_all_sequences() -> None:
    engine = ManyEngine({0: letters("aaaaaaaa"), 1: letters("bbbbbbbb")})
    deltas = generator_of(engine).generate(TextRequest("x", SAMPLED, num_sequences=2))
    await anext(deltas)
    await deltas.aclose()
    assert len(engine.calls) == 2
    assert all(call.closed for call in engine.calls)


def test_a_sequence_that_a_stop_string_ends_is_closed_while_others_go_on() -> None:
    engine = ManyEngine({0: letters("aXbbbbb"), 1: letters("cccccc")})
    params = replace(SAMPLED, stop_strings=("X",))
    first, second = answers(engine, TextRequest("x", params, num_sequences=2))
    assert (first.text, first.stop_string, first.completion_tokens) == ("a", "X", 2)
    assert (second.text, second.finish_reason) == ("cccccc", FinishReason.LENGTH)


def test_tokens_are_told_with_logprobs_bytes_and_offsets() -> None:
    ids = encode("a\u4e00")  # a character without a merge: four tokens in all
    params = SamplingParams(9, num_logprobs=2)
    [answer] = answers(ManyEngine({0: ids}), TextRequest("x", params, options=TOKENS))
    assert [token.id for token in answer.tokens] == ids
    assert [token.text for token in answer.tokens] == [b"a", b"\xe4", b"\xb8", b"\x80"]
    assert [token.text_offset for token in answer.tokens] == [0, 1, 2, 3]
    assert [token.logprob for token in answer.tokens] == [-token / 8 for token in ids]
    assert answer.tokens[1].top == (TopToken(ids[1], -ids[1] / 8, b"\xe4"), TopToken(EOS_ID, -100.0, b""))
    without = AnswerOptions(tokens=True)
    [answer] = answers(ManyEngine({0: ids}), TextRequest("x", params, options=without))
    assert {(token.text, token.text_offset) for token in answer.tokens} == {(b"", 0)}


def test_what_ends_the_text_gives_it_nothing_unless_it_is_asked_for() -> None:
    said = letters("ab!")
    params = SamplingParams(9, stop_token_ids=(said[-1],))

    def answer(**changes: Any) -> TextDelta:
        engine = ManyEngine({0: said}, FinishReason.STOP)
        [found] = answers(engine, TextRequest("x", replace(params, **changes), options=TOKENS))
        assert found.finish_reason is FinishReason.STOP
        assert b"".join(token.text for token in found.tokens).decode() == found.text
        assert found.completion_tokens == 3
        return found

    assert (answer().text, answer().stop_token_id) == ("ab", said[-1])
    shown = answer(include_stop=True)
    assert (shown.text, shown.stop_token_id) == ("ab!", said[-1])
    complete = answer(stop_token_ids=())  # as a constraint ends it
    assert (complete.text, complete.stop_token_id, complete.stop_string) == ("ab!", None, None)


def test_a_stop_token_may_complete_a_stop_string_where_it_is_shown() -> None:
    said = letters("ab!")
    params = SamplingParams(9, stop_token_ids=(said[-1],), stop_strings=("b!",), include_stop=True)
    [answer] = answers(ManyEngine({0: said}, FinishReason.STOP), TextRequest("x", params))
    assert (answer.text, answer.stop_string, answer.stop_token_id) == ("ab!", "b!", None)


def test_stop_strings_wait_for_min_tokens() -> None:
    said = letters("aXbXc")
    for min_tokens, text in ((0, "a"), (1, "a"), (2, "aXb"), (3, "aXb"), (4, "aXbXc"), (5, "aXbXc")):
        params = SamplingParams(9, stop_strings=("X",), min_tokens=min_tokens)
        [answer] = answers(ManyEngine({0: said}), TextRequest("x", params))
        assert answer.text == text, min_tokens


def test_the_prompt_is_told_with_the_first_delta() -> None:
    ids = [token_id(TOKENIZER, BOS), *encode("the \u4e00")]
    params = replace(SAMPLED, num_prompt_logprobs=2)
    options = AnswerOptions(echo=True, token_text=True, tokens=True)
    engine = ManyEngine({0: letters("ab"), 1: letters("cdef")})
    request = TextRequest(ids, params, num_sequences=2, options=options)
    deltas = asyncio.run(read(generator_of(engine), request))
    assert deltas[0].index == 0
    info = deltas[0].prompt_info
    assert info
    assert not any(delta.prompt_info for delta in deltas[1:])
    assert (info.text, info.truncated_tokens) == ("the \u4e00", 0)
    assert [token.id for token in info.tokens] == ids
    assert b"".join(token.text for token in info.tokens).decode() == "the \u4e00"
    assert info.tokens[0].logprob is None
    assert [token.logprob for token in info.tokens[1:]] == [-token / 8 for token in ids[1:]]


def test_the_prompt_comes_first_even_where_the_first_text_is_late_or_held_back() -> None:
    engine = ManyEngine({0: encode("\u4e00"), 1: letters("cdef")}, late_turns=30)
    request = TextRequest("the", SAMPLED, num_sequences=2, options=AnswerOptions(echo=True))
    deltas = asyncio.run(read(generator_of(engine), request))
    assert deltas[0] == TextDelta("", prompt_info=PromptInfo("the"))


def test_nobody_waits_for_the_first_sequence_where_there_is_no_prompt_to_tell() -> None:
    engine = ManyEngine({0: letters("ab"), 1: letters("cdef")}, late_turns=30)
    deltas = asyncio.run(read(generator_of(engine), TextRequest("the", SAMPLED, num_sequences=2)))
    assert [delta.index for delta in deltas] == [1, 1, 1, 1, 0, 0]


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    engine = ManyEngine({0: letters("a")})
    [answer] = answers(engine, TextRequest([5], SamplingParams(9, num_prompt_logprobs=0)))
    assert engine.calls[0].asked["first_score"] is None
    assert answer.prompt_info
    assert [(token.id, token.logprob) for token in answer.prompt_info.tokens] == [(5, None)]


def test_a_long_prompt_is_told_as_a_short_one() -> None:
    ids = encode("the cat sat. ") * 100
    options = AnswerOptions(prompt_tokens=True, token_text=True, echo=True)
    [answer] = answers(ManyEngine({0: letters("a")}), TextRequest(ids, SamplingParams(9), options=options))
    assert answer.prompt_info
    assert b"".join(token.text for token in answer.prompt_info.tokens).decode() == decode(TOKENIZER, ids)
    assert [token.id for token in answer.prompt_info.tokens] == ids


@pytest.mark.parametrize("as_ids", [False, True], ids=["text", "ids"])
@pytest.mark.parametrize("most", [1, 3, 64])
def test_a_prompt_is_cut_to_its_last_tokens(most: int, as_ids: bool) -> None:
    text = "the cat sat on the mat. why? because 😀 " * 6
    ids = encode(text)
    engine = ManyEngine({0: letters("a")})
    prompt = ids if as_ids else text
    request = TextRequest(prompt, SamplingParams(9), truncate_tokens=most, options=AnswerOptions(echo=True))
    [answer] = answers(engine, request)
    assert engine.calls[0].prompt_ids == ids[-most:]
    assert answer.prompt_info == PromptInfo(decode(TOKENIZER, ids[-most:]), (), len(ids) - most)
    assert answer.prompt_tokens == most


async def test_a_prompt_that_is_not_cut_has_to_fit() -> None:
    with pytest.raises(PromptTooLong):
        await read(generator_of(ManyEngine({})), TextRequest("the cat 😀 " * 60, SamplingParams(9)))


def test_times_are_told_from_admission_on() -> None:
    seconds = iter([10.0, 12.5, 13.0, 99.0])  # admission, two tokens, the end
    engine = ManyEngine({0: letters("ab")}, begun_s=11.0)
    request = TextRequest("x", SamplingParams(9), options=AnswerOptions(timing=True))
    [answer] = joined(asyncio.run(read(generator_of(engine, clock=lambda: next(seconds)), request)))
    assert answer.timing == Timing(queue_s=1.0, prefill_s=1.5, decode_s=0.5)


def test_nothing_is_told_that_is_not_asked_for() -> None:
    engine = ManyEngine({0: letters("ab")})
    [answer] = answers(engine, TextRequest("x", SamplingParams(9)))
    assert (answer.tokens, answer.prompt_info, answer.timing) == ((), None, None)
