"""Text from token events: the stream's deltas are the text, however the events come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.engine.async_engine import AsyncEngine
from llm_grpc.engine.constraint import TokenMask
from llm_grpc.engine.engine import Load
from llm_grpc.engine.request import TokenEvent
from llm_grpc.errors import EngineFailed, InvalidParameter, PromptTooLong, QueueFull
from llm_grpc.metrics import MODEL, Metrics, ModelMetrics
from llm_grpc.sampling_params import FinishReason, SamplingParams
from llm_grpc.text.admission import Admission
from llm_grpc.text.generator import TextGenerator
from llm_grpc.text.text_delta import TextDelta, joined
from llm_grpc.text.text_request import AnswerOptions, TextRequest
from tests.unit.scheduling import slot_scheduler
from tests.unit.scripted_runner import HANG_S, ScriptedRunner, hashed, script
from tests.unit.small_tokenizers import BOS, EOS, byte_level, decode, metaspace, token_id

TOKENIZER = byte_level()
EOS_ID = token_id(TOKENIZER, EOS)
IDS = st.integers(0, TOKENIZER.raw.get_vocab_size() - 1)
CONTEXT = 128


class ScriptedEngine:
    """Says given tokens, as many at a time as given: what a slow reader sees of the real engine."""

    def __init__(self, tokens: list[int], batch_sizes: list[int], eos_id: int = EOS_ID) -> None:
        self._tokens, self._batch_sizes, self._eos_id = tokens, batch_sizes, eos_id
        self.closed = False

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, **asked: object
    ) -> AsyncGenerator[list[TokenEvent], None]:
        last = FinishReason.EOS if self._tokens[-1] == self._eos_id else FinishReason.LENGTH
        events = [TokenEvent(1, token) for token in self._tokens[:-1]]
        events.append(TokenEvent(1, self._tokens[-1], last))
        sizes = iter(self._batch_sizes)
        try:
            while events:
                size = next(sizes, len(events))
                yield events[:size]
                events = events[size:]
        finally:
            self.closed = True


async def read(
    generator: TextGenerator,
    prompt: str | Sequence[int],
    max_tokens: int = 99,
    stops: tuple[str, ...] = (),
    returns_tokens: bool = False,
) -> list[TextDelta]:
    params = SamplingParams(max_tokens, stop_strings=stops)
    request = TextRequest(prompt, params, options=AnswerOptions(tokens=returns_tokens))
    async with aclosing(generator.generate(request)) as deltas:
        return [delta async for delta in deltas]


def deltas_of(
    tokens: list[int],
    batch_sizes: list[int],
    stops: tuple[str, ...] = (),
    eos_id: int = EOS_ID,
    returns_tokens: bool = False,
) -> tuple[list[TextDelta], ModelMetrics]:
    engine, metrics = ScriptedEngine(tokens, batch_sizes, eos_id), ModelMetrics(Metrics(), "m")
    admission = Admission(1, 0)
    generator = TextGenerator(TOKENIZER, cast("AsyncEngine", engine), admission, metrics)
    deltas = asyncio.run(read(generator, "the cat", stops=stops, returns_tokens=returns_tokens))
    assert engine.closed
    assert admission.held == 0
    return deltas, metrics


def whole(deltas: list[TextDelta]) -> TextDelta:
    """The unary answer: the last delta with all the text."""
    last = deltas[-1]
    assert last.finish_reason
    assert all(d == TextDelta(d.text, tokens=d.tokens) and (d.text or d.tokens) for d in deltas[:-1])
    [answer] = joined(deltas)
    return answer


def ids_of(delta: TextDelta) -> list[int]:
    return [token.id for token in delta.tokens]


def count(metrics: ModelMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {MODEL: "m", **labels})


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.raw.encode(text).ids
    return ids


TOKENS = st.lists(IDS.filter(lambda i: i != EOS_ID), min_size=1, max_size=25) | st.text(
    "ab \nthe😀é", min_size=1, max_size=12
).map(encode)


@settings(max_examples=150, deadline=None)
@given(
    tokens=TOKENS,
    ends=st.booleans(),
    batch_sizes=st.lists(st.integers(1, 6), max_size=25),
    stops=st.lists(st.text("ab \nthe😀é", min_size=1, max_size=3), max_size=2),
)
def test_the_text_does_not_depend_on_how_events_are_batched(
    tokens: list[int], ends: bool, batch_sizes: list[int], stops: list[str]
) -> None:
    said = [*tokens, EOS_ID] if ends else tokens
    singly, single_metrics = deltas_of(said, [1] * len(said), tuple(stops))
    batched, batched_metrics = deltas_of(said, batch_sizes, tuple(stops))
    answer = whole(batched)
    assert answer == whole(singly)
    assert len(batched) <= len(singly)
    text = decode(TOKENIZER, tokens)
    ends_at = min(((text.find(s) + len(s), -len(s)) for s in stops if s in text), default=None)
    if ends_at is None:
        assert answer.text == text
        assert answer.finish_reason is (FinishReason.EOS if ends else FinishReason.LENGTH)
        assert answer.stop_token_id == (EOS_ID if ends else None)
        assert answer.completion_tokens == len(said)
    else:
        end, length = ends_at
        assert (answer.text, answer.stop_string) == (text[: end + length], text[end + length : end])
        assert answer.finish_reason is FinishReason.STOP
        assert answer.stop_token_id is None
        assert answer.completion_tokens <= len(said)
    assert answer.prompt_tokens == len(encode("the cat"))
    for metrics in (single_metrics, batched_metrics):
        assert count(metrics, "llm_grpc_generation_tokens_total") == answer.completion_tokens
        assert count(metrics, "llm_grpc_prompt_tokens_total") == answer.prompt_tokens


@settings(max_examples=100, deadline=None)
@given(
    tokens=TOKENS,
    ends=st.booleans(),
    batch_sizes=st.lists(st.integers(1, 6), max_size=25),
    stops=st.lists(st.text("ab \nthe😀é", min_size=1, max_size=3), max_size=2),
)
def test_tokens_come_with_every_hand_over_and_change_nothing_else(
    tokens: list[int], ends: bool, batch_sizes: list[int], stops: list[str]
) -> None:
    said = [*tokens, EOS_ID] if ends else tokens
    plain = whole(deltas_of(said, batch_sizes, tuple(stops))[0])
    deltas, _ = deltas_of(said, batch_sizes, tuple(stops), returns_tokens=True)
    answer = whole(deltas)
    assert ids_of(answer) == said[: answer.completion_tokens]
    assert answer._replace(tokens=()) == plain
    sizes = [len(delta.tokens) for delta in deltas]
    assert sizes[:-1] == batch_sizes[: len(sizes) - 1]
    assert sizes[-1] > 0


def test_a_stop_string_over_token_boundaries_ends_the_text_and_counts_its_tokens() -> None:
    tokens = [encode(part)[0] for part in "abcQXYZ"]
    deltas, metrics = deltas_of(tokens, [1] * 7, ("cQX",))
    assert [delta.text for delta in deltas] == ["a", "b", ""]
    assert deltas[-1] == TextDelta(
        "",
        finish_reason=FinishReason.STOP,
        prompt_tokens=len(encode("the cat")),
        completion_tokens=5,
        stop_string="cQX",
    )
    assert count(metrics, "llm_grpc_request_success_total", finished_reason="stop") == 1


def test_text_held_back_comes_with_the_end() -> None:
    tokens = [*encode("ab"), encode("c")[0], EOS_ID]
    deltas, _ = deltas_of(tokens, [1] * len(tokens), ("cQX",))
    assert whole(deltas).text == "abc"
    assert deltas[-1].text == "c"


def test_an_end_token_is_no_text_even_where_the_tokenizer_has_text_for_it() -> None:
    [eos_id] = encode("Z")
    answer = whole(deltas_of([*encode("ab"), eos_id], [], eos_id=eos_id)[0])
    assert (answer.text, answer.stop_token_id) == ("ab", eos_id)


def test_a_stop_string_on_the_last_token_beats_length_and_eos() -> None:
    for tokens in ([*encode("ab")], [*encode("ab"), EOS_ID]):
        answer = whole(deltas_of(tokens, [], ("b",))[0])
        assert (answer.text, answer.finish_reason, answer.stop_token_id) == ("a", FinishReason.STOP, None)


def test_half_a_character_at_the_end_is_shown_and_may_match_a_stop_string() -> None:
    tokens = encode("a\u4e00")[:-1]
    assert whole(deltas_of(tokens, [1] * 9)[0]).text == "a\ufffd"
    answer = whole(deltas_of(tokens, [1] * 9, ("\ufffd",))[0])
    assert (answer.text, answer.stop_string) == ("a", "\ufffd")


class Bench:
    def __init__(self, runner: ScriptedRunner, num_slots: int, max_waiting: int) -> None:
        self.runner = runner
        self.scheduler = slot_scheduler(num_slots, CONTEXT, 8, {EOS_ID})
        self.engine = AsyncEngine(self.scheduler, runner, asyncio.get_running_loop())
        self.admission, self.metrics = Admission(num_slots, max_waiting), ModelMetrics(Metrics(), "m")
        self.generator = TextGenerator(TOKENIZER, self.engine, self.admission, self.metrics)


@asynccontextmanager
async def bench_of(
    next_token: Callable[[Sequence[int]], int] = hashed,
    *,
    num_slots: int = 2,
    max_waiting: int = 8,
    gated: bool = False,
) -> AsyncIterator[Bench]:
    async with asyncio.timeout(HANG_S):
        bench = Bench(ScriptedRunner(next_token, gated=gated), num_slots, max_waiting)
        bench.engine.start()
        try:
            yield bench
        finally:
            bench.runner.open()
            await bench.engine.stop()
        assert bench.engine.load == Load()
        assert bench.admission.held == 0


async def test_concurrent_requests_get_the_text_of_their_tokens() -> None:
    prompts = [f"the cat {'sat ' * n}😀" for n in range(12)]
    async with bench_of(max_waiting=10) as bench:
        answers = await asyncio.gather(*(read(bench.generator, p, 5 + n) for n, p in enumerate(prompts)))
    for n, (prompt, deltas) in enumerate(zip(prompts, answers, strict=True)):
        params = SamplingParams(5 + n)
        tokens, reason = bench.runner.expected(encode(prompt), params, CONTEXT, {EOS_ID})
        answer = whole(deltas)
        assert (answer.text, answer.finish_reason) == (decode(TOKENIZER, tokens), reason)
        assert (answer.prompt_tokens, answer.completion_tokens) == (len(encode(prompt)), len(tokens))


async def test_a_stop_string_frees_the_slot_before_the_tokens_are_spent() -> None:
    tokens = encode("why? because the cat sat on the mat.") * 3
    async with bench_of(script(len(encode("Q")), tokens), gated=True) as bench:
        answer = asyncio.create_task(read(bench.generator, "Q", len(tokens), ("cat",)))
        other = asyncio.create_task(read(bench.generator, "Q", len(tokens)))
        await bench.runner.at_run()
        while not answer.done():
            await bench.runner.next_run()
        plan = await bench.runner.next_run()
        assert [row.slot for row in plan.decode] == [1]
        assert plan.decode[0].position < len(tokens) // 2
        bench.runner.open()
        assert whole(await answer).text == "why? because the "
        assert whole(await other).completion_tokens == len(tokens)


class TooComplex:
    """A constraint that gives up at once."""

    is_complete = True

    def start(self) -> TokenMask:
        raise AssertionError("this engine asks for no mask")

    def advance(self, token: int) -> None:
        raise AssertionError("this engine tells no token")

    def check(self) -> None:
        raise InvalidParameter("constraint.regex", "is too complex after 0 tokens")


async def test_a_constraint_that_gave_up_is_the_requests_fault() -> None:
    engine, admission = ScriptedEngine([EOS_ID], []), Admission(1, 0)
    generator = TextGenerator(TOKENIZER, cast("AsyncEngine", engine), admission, ModelMetrics(Metrics(), "m"))
    request = TextRequest("the cat", SamplingParams(9), constraint=TooComplex)
    with pytest.raises(InvalidParameter, match=r"constraint\.regex: is too complex"):
        async for _ in generator.generate(request):
            pass
    assert admission.held == 0


async def test_one_request_too_many_is_refused_before_any_work() -> None:
    async with bench_of(num_slots=1, max_waiting=1, gated=True) as bench:
        admitted = [asyncio.create_task(read(bench.generator, "a", 3)) for _ in range(2)]
        await bench.runner.at_run()
        with pytest.raises(QueueFull, match="limit is 2") as caught:
            await read(bench.generator, "the cat")
        assert caught.value.retry_after_s
        assert count(bench.metrics, "llm_grpc_prompt_tokens_total") == 2
        bench.runner.open()
        await asyncio.gather(*admitted)
        assert whole(await read(bench.generator, "a", 3)).completion_tokens == 3


@pytest.mark.parametrize("text", ["a", "😀"])
async def test_a_prompt_fits_or_is_refused_by_one_token(text: str) -> None:
    async with bench_of() as bench:
        limit = TOKENIZER.max_prompt_tokens
        fits = text * (limit // len(encode(text)))
        while len(encode(fits)) < limit:
            fits += "b"
        assert len(encode(fits)) == limit
        assert whole(await read(bench.generator, fits, 1)).prompt_tokens == limit
        with pytest.raises(PromptTooLong, match=f"has {limit + 1} tokens, and the limit is {limit}"):
            await read(bench.generator, fits + "\x00")
        with pytest.raises(PromptTooLong):
            await read(bench.generator, "Z" * 10_000)  # long enough for a worker thread
        assert bench.admission.held == 0


async def test_a_prompt_without_tokens_is_refused_and_harms_nobody() -> None:
    async with bench_of() as bench:
        with pytest.raises(InvalidParameter, match="prompt: has 0 tokens"):
            await read(bench.generator, "")
        with pytest.raises(InvalidParameter, match="prompt: has 0 tokens"):
            await metaspace().encode("\u4e00")  # a tokenizer that drops what it does not know
        assert bench.engine.is_healthy
        assert whole(await read(bench.generator, "a", 1)).completion_tokens == 1


async def test_a_special_token_written_in_the_prompt_is_one_token() -> None:
    assert await TOKENIZER.encode(f"{BOS}a") == [token_id(TOKENIZER, BOS), *encode("a")]


async def test_a_prompt_of_ids_is_taken_as_it_is() -> None:
    ids = [token_id(TOKENIZER, EOS), *encode("the 😀")[:-1]]  # half a character at the end
    async with bench_of() as bench:
        answer = whole(await read(bench.generator, ids, 5, returns_tokens=True))
        expected, _ = bench.runner.expected(ids, SamplingParams(5), CONTEXT)
    assert (answer.prompt_tokens, ids_of(answer)) == (len(ids), expected)


async def test_closing_early_frees_slot_and_permit() -> None:
    async with bench_of(num_slots=1, max_waiting=0, gated=True) as bench:
        deltas = bench.generator.generate(TextRequest("a", SamplingParams(50)))
        first = asyncio.ensure_future(anext(deltas))
        await bench.runner.at_run()
        while not first.done():
            await bench.runner.next_run()
        num_plans = len(bench.runner.plans)
        await deltas.aclose()
        assert bench.admission.held == 0
        heir = asyncio.create_task(read(bench.generator, "b", 2))
        await asyncio.sleep(0)
        plan = await bench.runner.next_run()
        assert plan.chunk, "the heir starts at the step after the close"
        assert (plan.decode, plan.chunk.slot, list(plan.chunk.tokens)) == ((), 0, encode("b"))
        assert len(bench.runner.plans) == num_plans + 1
        bench.runner.open()
        assert whole(await heir).completion_tokens == 2


async def test_cancelling_while_it_waits_for_a_slot_gives_the_permit_back() -> None:
    async with bench_of(num_slots=1, max_waiting=1, gated=True) as bench:
        runs = asyncio.create_task(read(bench.generator, "a", 3))
        await bench.runner.at_run()
        waits = asyncio.create_task(read(bench.generator, "b", 3))
        await asyncio.sleep(0)
        assert bench.admission.held == 2
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert bench.admission.held == 1
        bench.runner.open()
        assert whole(await runs).completion_tokens == 3


async def test_an_engine_failure_reaches_the_caller_and_gives_the_permit_back() -> None:
    async with bench_of() as bench:
        bench.runner.faults = [RuntimeError("broken")]
        with pytest.raises(EngineFailed):
            await read(bench.generator, "a")
        assert bench.admission.held == 0
        assert count(bench.metrics, "llm_grpc_request_success_total", finished_reason="length") is None
        assert whole(await read(bench.generator, "a", 3)).completion_tokens == 3


async def test_who_stops_reading_at_the_last_delta_has_had_the_whole_answer() -> None:
    async with bench_of() as bench:
        async with aclosing(bench.generator.generate(TextRequest("a", SamplingParams(4)))) as deltas:
            async for delta in deltas:
                if delta.finish_reason:
                    break
        assert count(bench.metrics, "llm_grpc_request_success_total", finished_reason="length") == 1
