"""The same request again: joined while it is computed, given again after its end, within time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.errors import EngineFailed
from llm_grpc.server.replays import Key, Replays
from llm_grpc.v1.llm_pb2 import FinishReason, GenerateTextRequest, GenerateTextResponse
from tests.unit.scripted_runner import HANG_S

WINDOW_S = 60.0


def key(request_id: str = "a", prompt: str = "p") -> Key:
    return Key.of("caller", "GenerateText", request_id, GenerateTextRequest(prompt=prompt))


def message(text: str) -> GenerateTextResponse:
    return GenerateTextResponse(generated_text=text)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A computation whose messages come when the test says so. ``num_started`` counts how often it began."""

    def __init__(self) -> None:
        self.num_started = 0
        self.num_open = 0
        self._queue: asyncio.Queue[GenerateTextResponse | Exception | None] = asyncio.Queue()

    async def __call__(self) -> AsyncGenerator[GenerateTextResponse, None]:
        self.num_started += 1
        self.num_open += 1
        try:
            while said := await self._queue.get():
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            self.num_open -= 1

    def say(self, *said: str | Exception, end: bool = False) -> None:
        for each in said:
            self._queue.put_nowait(message(each) if isinstance(each, str) else each)
        if end:
            self._queue.put_nowait(None)


class Bench:
    def __init__(self, window_s: float = WINDOW_S, max_bytes: int = 10**6) -> None:
        self.clock, self.source = Clock(), Source()
        self.replays = Replays(window_s, max_bytes, self.clock)

    def read(self, which: Key | None = None) -> AsyncGenerator[GenerateTextResponse, None]:
        return self.replays.read(which or key(), self.source)

    async def texts(self, which: Key | None = None) -> list[str]:
        async with aclosing(self.read(which)) as messages:
            return [each.generated_text async for each in messages]

    async def answer(self, which: Key, text: str) -> None:
        """Have one answer computed from the beginning to its end."""
        started = self.source.num_started
        self.source.say(text, end=True)
        assert await self.texts(which) == [text]
        assert self.source.num_started == started + 1

    async def is_kept(self, which: Key, text: str) -> bool:
        """Whether an answer is given again; where not, nothing is left of the question."""
        started = self.source.num_started
        reader = self.read(which)
        first = asyncio.ensure_future(anext(reader))
        await turn()
        if self.source.num_started > started:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await idle(self.source)
            return False
        assert (await first).generated_text == text
        await reader.aclose()
        return True


async def turn() -> None:
    """Let everybody do what there is to do."""
    for _ in range(5):
        await asyncio.sleep(0)


async def idle(source: Source) -> None:
    """Wait until no computation is under way."""
    async with asyncio.timeout(HANG_S):
        while source.num_open:  # noqa: ASYNC110 - what a task does when it is cancelled has no event
            await asyncio.sleep(0)


async def test_who_comes_later_gets_everything_from_the_beginning_and_then_what_comes() -> None:
    bench = Bench()
    first = bench.read()
    bench.source.say("one", "two")
    assert [(await anext(first)).generated_text for _ in range(2)] == ["one", "two"]
    second = bench.read()
    assert [(await anext(second)).generated_text for _ in range(2)] == ["one", "two"]
    waits = asyncio.ensure_future(anext(second))
    await asyncio.sleep(0)
    assert not waits.done()
    bench.source.say("three", end=True)
    assert (await waits).generated_text == "three"
    assert [each.generated_text async for each in first] == ["three"]
    assert [each async for each in second] == []
    assert bench.source.num_started == 1


async def test_a_slow_reader_holds_up_nobody() -> None:
    bench = Bench()
    slow = bench.read()
    bench.source.say(*"abcdef", end=True)
    assert (await anext(slow)).generated_text == "a"
    assert await bench.texts() == [*"abcdef"]
    assert [each.generated_text async for each in slow] == [*"bcdef"]


async def test_after_the_end_the_answer_is_given_again_for_as_long_as_the_window_is() -> None:
    bench = Bench()
    bench.source.say("one", "two", end=True)
    answer = await bench.texts()
    bench.clock.now += WINDOW_S - 0.001
    assert await bench.texts() == answer
    bench.clock.now += 0.001
    bench.source.say("anew", end=True)
    assert await bench.texts() == ["anew"]
    assert bench.source.num_started == 2


@pytest.mark.parametrize(
    "other",
    [
        Key.of("caller", "GenerateText", "b", GenerateTextRequest(prompt="p")),
        Key.of("caller", "GenerateText", "a", GenerateTextRequest(prompt="q")),
        Key.of("caller", "StreamGenerateText", "a", GenerateTextRequest(prompt="p")),
        Key.of("another", "GenerateText", "a", GenerateTextRequest(prompt="p")),
    ],
    ids=["id", "request", "method", "caller"],
)
async def test_what_differs_is_a_request_of_its_own(other: Key) -> None:
    bench = Bench()
    await bench.answer(key(), "first")
    await bench.answer(other, "second")
    assert await bench.texts() == ["first"]
    assert await bench.texts(other) == ["second"]


async def test_the_computation_goes_on_while_one_reader_is_left_and_ends_with_the_last() -> None:
    bench = Bench()
    first, second = bench.read(), bench.read()
    bench.source.say("one")
    await anext(first)
    await anext(second)
    await first.aclose()
    bench.source.say("two")
    assert (await anext(second)).generated_text == "two"
    await second.aclose()
    await idle(bench.source)
    bench.source.say("anew", end=True)
    assert await bench.texts() == ["anew"], "what was broken off is no answer"
    assert bench.source.num_started == 2


async def test_an_heir_is_not_harmed_by_the_end_of_what_its_predecessor_left() -> None:
    """The first computation is still being closed when the same request comes again."""
    bench = Bench()
    may_close = asyncio.Event()

    async def stubborn() -> AsyncGenerator[GenerateTextResponse, None]:
        try:
            yield message("old")
            await asyncio.sleep(HANG_S)
        finally:
            await may_close.wait()

    first = bench.replays.read(key(), stubborn)
    assert (await anext(first)).generated_text == "old"
    await first.aclose()
    second = bench.read()
    bench.source.say("new")
    assert (await anext(second)).generated_text == "new"
    may_close.set()
    await asyncio.sleep(0)
    joined = bench.read()
    assert (await anext(joined)).generated_text == "new"
    bench.source.say("er", end=True)
    assert [each.generated_text async for each in joined] == ["er"]
    assert bench.source.num_started == 1
    assert await bench.texts() == ["new", "er"]
    await second.aclose()


async def test_a_failure_reaches_all_readers_and_is_forgotten() -> None:
    bench = Bench()
    readers = [asyncio.ensure_future(bench.texts()) for _ in range(3)]
    await asyncio.sleep(0)
    bench.source.say("half", EngineFailed("broken"))
    for reader in readers:
        with pytest.raises(EngineFailed, match="broken"):
            await reader
    assert bench.source.num_started == 1
    await bench.answer(key(), "whole")


async def test_without_a_window_each_request_is_computed() -> None:
    bench = Bench(window_s=0)
    for text in ("one", "two"):
        await bench.answer(key(), text)
    first, second = bench.read(), bench.read()
    bench.source.say("a", "b")
    assert {(await anext(each)).generated_text for each in (first, second)} == {"a", "b"}
    await first.aclose()
    await second.aclose()


async def test_the_answer_that_ended_first_makes_room() -> None:
    bench = Bench(max_bytes=3000)
    for name in "abc":
        await bench.answer(key(name), name * 900)
    assert bench.replays.num_bytes <= 3000
    assert [await bench.is_kept(key(name), name * 900) for name in "abc"] == [True, True, True]
    await bench.answer(key("d"), "d" * 900)
    assert [await bench.is_kept(key(name), name * 900) for name in "abcd"] == [False, True, True, True]
    await bench.answer(key("e"), "e" * 5000)
    assert not await bench.is_kept(key("e"), "")
    assert bench.replays.num_bytes == 0


messages_of_answers = st.lists(
    st.builds(
        GenerateTextResponse,
        generated_text=st.text(max_size=20),
        sequence=st.integers(0, 2**31 - 1),
        seed=st.integers(0, 2**64 - 1),
        finish_reason=st.sampled_from([FinishReason.FINISH_REASON_EOS, 0]),
        stop_token_id=st.none() | st.integers(0, 9),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(answer=messages_of_answers, joins_after=st.lists(st.integers(0, 8), max_size=4))
def test_every_reader_gets_the_same_bytes(answer: list[GenerateTextResponse], joins_after: list[int]) -> None:
    """Readers join after so many messages; the last ones after the end."""

    async def run() -> None:
        replays = Replays(WINDOW_S, 10**6, Clock())
        queue: asyncio.Queue[GenerateTextResponse | None] = asyncio.Queue()

        async def start() -> AsyncGenerator[GenerateTextResponse, None]:
            while each := await queue.get():
                yield each

        async def data() -> list[bytes]:
            async with aclosing(replays.read(key(), start)) as messages:
                return [each.SerializeToString() async for each in messages]

        readers = [asyncio.ensure_future(data())]
        for place, each in enumerate([*answer, None]):
            readers += [asyncio.ensure_future(data()) for after in joins_after if after == place]
            await asyncio.sleep(0)
            queue.put_nowait(each)
        found = await asyncio.gather(*readers)
        found.append(await data())
        assert found == [[each.SerializeToString() for each in answer]] * len(found)

    asyncio.run(run())


class Everybody:
    """Readers of four requests, which come and go in any order."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.replays = Replays(WINDOW_S, 500, self.clock)
        self.sources = [Source() for _ in range(4)]
        self._readers: list[list[asyncio.Task[None]]] = [[] for _ in range(4)]

    async def _consume(self, which: int) -> None:
        async with aclosing(self.replays.read(key(str(which)), self.sources[which])) as messages:
            async for _ in messages:
                pass

    def ask(self, which: int) -> None:
        self._readers[which].append(asyncio.ensure_future(self._consume(which)))

    def leave(self, which: int) -> None:
        if self._readers[which]:
            self._readers[which].pop().cancel()

    def say(self, which: int) -> None:
        self.sources[which].say("x" * 30)

    def end(self, which: int) -> None:
        self.sources[which].say(end=True)

    def fail(self, which: int) -> None:
        self.sources[which].say(EngineFailed("broken"))

    def wait(self, which: int) -> None:
        self.clock.now += 20

    async def go(self) -> None:
        readers = [reader for readers in self._readers for reader in readers]
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for source in self.sources:
            await idle(source)


@settings(max_examples=60, deadline=None)
@given(
    ops=st.lists(
        st.tuples(st.sampled_from(["ask", "leave", "say", "end", "fail", "wait"]), st.integers(0, 3)),
        max_size=40,
    )
)
def test_nothing_is_left_when_everybody_has_gone(ops: list[tuple[str, int]]) -> None:
    async def run() -> None:
        everybody = Everybody()
        replays = everybody.replays
        for op, which in ops:
            getattr(everybody, op)(which)
            await turn()
            assert 0 <= replays.num_bytes <= 500
        await everybody.go()
        assert not replays._running
        assert replays.num_bytes == sum(kept.num_bytes for kept in replays._kept.values())
        everybody.clock.now += WINDOW_S
        replays._forget()
        assert replays.num_bytes == 0

    asyncio.run(run())
