"""The embedded model in its slots: what is reused is what would have been computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.engine.request import Request
from llm_grpc.engine.step_budget import StepBudget
from llm_grpc.engine.step_plan import DecodeRow, PrefillChunk, Sample, Score, SlotCopy, StepPlan
from llm_grpc.engine.warm_up import warm_up
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.slot_runner import SlotRunner
from llm_grpc.runtime.token_scores import step_result
from llm_grpc.sampling_params import SamplingParams
from tests.unit.scheduling import request, slot_scheduler, slot_table, tokens_of

TOLERANCE = 1e-5
"""Of the largest logit. fp32 sums in another order, in each of five layers."""

CONTEXT = 96
TOKENIZER = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
PARAMS = SamplingParams(1)


def ids(seed: int, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(1, 1024, count)]


@pytest.fixture
def runner() -> SlotRunner:
    return make_runner()


def make_runner(num_slots: int = 4, num_micro_batches: int = 0) -> SlotRunner:
    return SlotRunner(
        EMBEDDED_MODEL,
        load_manifest(EMBEDDED_MODEL),
        num_slots,
        CONTEXT,
        threads=1,
        num_micro_batches=num_micro_batches,
    )


def logits(
    runner: SlotRunner,
    rows: Sequence[DecodeRow] = (),
    chunk: PrefillChunk | None = None,
    copies: tuple[SlotCopy, ...] = (),
) -> NDArray[np.float32]:
    """The logits of every token of one step."""
    num_tokens = len(rows) + (len(chunk.tokens) if chunk else 0)
    samples = tuple(Sample(row, row, 0, PARAMS) for row in range(num_tokens))
    return runner.logits(StepPlan(tuple(rows), (chunk,) if chunk else (), samples, copies)).copy()


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def cache_of(runner: SlotRunner, slot: int, num_tokens: int) -> list[NDArray[np.float32]]:
    """Keys and values of a slot's first tokens, layer by layer; copies."""
    return [view[0, :, :num_tokens].astype(np.float32) for _, _, view in runner._pool.views(slot, 1)]


def test_a_slot_between_those_that_decode_keeps_what_it_holds(runner: SlotRunner) -> None:
    """Slot 1 is kept while 0 and 2 decode, and goes on as if it had been alone all the time."""
    kept, first, second = ids(1, 40), ids(2, 12), ids(3, 15)
    logits(runner, chunk=PrefillChunk(1, 0, kept[:30]))
    before = cache_of(runner, 1, 30)
    logits(runner, chunk=PrefillChunk(0, 0, first[:2]))
    logits(runner, [DecodeRow(0, first[2], 2)], PrefillChunk(2, 0, second[:2]))
    for at in range(2, 10):
        logits(runner, [DecodeRow(0, first[at + 1], at + 1), DecodeRow(2, second[at], at)])
    after = cache_of(runner, 1, 30)
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old[:, 1:], new[:, 1:]), "nothing behind the first position is written"
        assert_close(new[:, :1], old[:, :1])
    found = logits(runner, chunk=PrefillChunk(1, 30, kept[30:]))
    assert_close(found, logits(make_runner(), chunk=PrefillChunk(0, 0, kept))[30:])


def test_the_first_position_is_written_bit_for_bit_as_it_was(runner: SlotRunner) -> None:
    """Steps of one shape compute a row from its token alone: a hole's second row is its first one."""
    logits(runner, chunk=PrefillChunk(1, 0, ids(1, 30)))
    for slot in (0, 2):
        logits(runner, chunk=PrefillChunk(slot, 0, [slot + 5]))
    seen = []
    for at in range(1, 6):
        logits(runner, [DecodeRow(0, 7, at), DecodeRow(2, 8, at)])
        seen.append(cache_of(runner, 1, 1))
    for again in seen[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(seen[0], again, strict=True))


def test_a_slot_that_is_copied_to_goes_on_as_its_source(runner: SlotRunner) -> None:
    tokens, other = ids(1, 50), ids(2, 10)
    logits(runner, chunk=PrefillChunk(3, 0, tokens[:45]))
    logits(runner, chunk=PrefillChunk(0, 0, other[:5]))
    chunk = PrefillChunk(1, 30, tokens[30:])
    found = logits(runner, [DecodeRow(0, other[5], 5)], chunk, (SlotCopy(3, 1, 40), SlotCopy(1, 2, 20)))
    assert_close(found[1:], logits(make_runner(), chunk=PrefillChunk(0, 0, tokens))[30:])
    for slot in (1, 2):
        for old, new in zip(cache_of(runner, 3, 20), cache_of(runner, slot, 20), strict=True):
            assert np.array_equal(old, new)


def test_a_chunk_that_fills_its_slot_beside_an_idle_half(runner: SlotRunner) -> None:
    tokens = ids(1, CONTEXT)
    wanted = logits(runner, chunk=PrefillChunk(0, 0, tokens))
    parts = [logits(runner, chunk=PrefillChunk(2, at, tokens[at : at + 32])) for at in range(0, CONTEXT, 32)]
    assert_close(np.concatenate(parts), wanted)
    assert_close(logits(runner, [DecodeRow(2, tokens[-1], CONTEXT - 1)]), wanted[-1:])


def test_a_request_in_a_high_slot_is_a_row_of_its_own(runner: SlotRunner) -> None:
    tokens = ids(1, 9)
    logits(runner, chunk=PrefillChunk(3, 0, tokens[:8]))
    wanted = logits(make_runner(), chunk=PrefillChunk(0, 0, tokens))
    assert_close(logits(runner, [DecodeRow(3, tokens[8], 8)]), wanted[-1:])
    assert num_packed(runner) == 1


def test_a_step_computes_its_tokens_and_no_others(runner: SlotRunner) -> None:
    first, second = ids(1, 9), ids(2, 9)
    logits(runner, chunk=PrefillChunk(0, 0, first))
    assert num_packed(runner) == 9, "a chunk alone"
    logits(runner, [DecodeRow(0, 5, 9)], PrefillChunk(1, 0, second))
    assert num_packed(runner) == 10, "both halves"
    logits(runner, [DecodeRow(0, 6, 10), DecodeRow(1, 7, 9)])
    assert num_packed(runner) == 2, "decode rows alone, the last of them in the chunk's half"


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3])
def test_samples_and_scores_are_of_their_rows(num_micro_batches: int) -> None:
    """Rows that are sampled, or scored, or both, or twice, beside rows of which nothing is asked."""
    runner, texts = make_runner(num_micro_batches=num_micro_batches), [ids(seed, 20) for seed in range(4)]
    for slot in (0, 2, 3):
        logits(runner, chunk=PrefillChunk(slot, 0, texts[slot][:10]))
    rows = tuple(DecodeRow(slot, texts[slot][10], 10) for slot in (3, 0, 2))
    chunk = PrefillChunk(1, 0, texts[1])
    told = SamplingParams(1, num_logprobs=3)
    drawn = SamplingParams(1, temperature=1.0, seed=5, frequency_penalty=1.0, num_logprobs=0)
    samples = [Sample(i, row, i, kind) for i, (row, kind) in enumerate(((22, told), (1, PARAMS), (1, drawn)))]
    scores = tuple(Score(9, row, row + 2, row % 3) for row in (22, 0, *range(3, 22, 4), 1, 1))
    everything = dict(enumerate(logits(runner, rows, chunk)))

    for plan in (
        StepPlan(rows, (chunk,), tuple(samples), scores=scores),
        StepPlan(rows, (chunk,), (), scores=scores),
        StepPlan(rows, (chunk,), tuple(samples)),
        StepPlan(rows, (), tuple(samples[1:]), scores=(Score(9, 2, 7), Score(9, 0, 8, 2))),
    ):
        assert runner.logits(plan).shape == (len(plan.logit_rows), 1024)
        found = runner.run(plan)
        wanted = step_result(plan, np.stack([everything[row] for row in plan.logit_rows]))
        assert (list(found.tokens), list(found.logprobs)) == (list(wanted.tokens), list(wanted.logprobs))
        told_of = [*found.logprobs.values(), *found.scores]
        wanted_of = [*wanted.logprobs.values(), *wanted.scores]
        for one, other in zip(told_of, wanted_of, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_what_is_told_of_generated_tokens_is_the_score_of_the_same_text() -> None:
    """Drawn one by one, and then as a prompt whose tokens are scored in one step."""
    runner, prompt = make_runner(), PROMPTS[0]
    params = SamplingParams(1, temperature=1.5, seed=11, repetition_penalty=1.3, num_logprobs=4)
    said, told = list[int](), []
    plan = StepPlan((), (PrefillChunk(0, 0, prompt),), (Sample(0, len(prompt) - 1, 0, params, prompt),))
    while len(said) < 20:
        found = runner.run(plan)
        said.append(found.tokens[0])
        told.append(found.logprobs[0])
        row = DecodeRow(0, said[-1], len(prompt) + len(said) - 1)
        plan = StepPlan((row,), (), (Sample(0, 0, len(said), params, prompt, tuple(said)),))
    text = [*prompt, *said]
    rows = range(len(prompt) - 1, len(text) - 1)
    scores = tuple(Score(0, row, text[row + 1], 4) for row in rows)
    found = runner.run(StepPlan((), (PrefillChunk(1, 0, text),), (), scores=scores))
    assert len(set(said)) > 10, "not one token again and again"
    for score, one in zip(found.scores, told, strict=True):
        assert score.logprob == pytest.approx(one.logprob, abs=1e-4)
        assert [p for _, p in score.top] == pytest.approx([p for _, p in one.top], abs=1e-4)


def num_packed(runner: SlotRunner) -> int:
    """Tokens of the last run."""
    return runner._bindings[0]._buffers["input_ids"].size


class Server:
    """A scheduler over the embedded model, as the engine drives it."""

    def __init__(
        self, num_slots: int = 4, chunk_tokens: int = 16, num_guesses: int = 0, room: int | None = None
    ) -> None:
        self.runner = make_runner(num_slots)
        warm_up(self.runner, num_slots, chunk_tokens)
        budget = StepBudget(chunk_tokens, num_guesses)
        self.scheduler = slot_scheduler(num_slots, CONTEXT, chunk_tokens, {0}, budget, room)
        self.num_releases = 0
        self.num_steps = 0
        self.said: dict[int, list[int]] = {}
        self.found: dict[int, int] = {}

    def add(self, prompt: list[int], max_tokens: int = 12, salt: str | None = "") -> int:
        return self.ask(request(len(self.said), prompt, max_tokens, salt=salt))

    def ask(self, asked: Request) -> int:
        self.said[asked.request_id], self.found[asked.request_id] = [], 0
        self.scheduler.add(asked)
        return asked.request_id

    def steps(self, count: int = 10_000) -> None:
        while count and (plan := self.scheduler.schedule()):
            self.num_releases += len(plan.releases)
            for event in tokens_of(self.scheduler.commit(plan, self.runner.run(plan))):
                self.said[event.request_id].append(event.token_id)
                self.found[event.request_id] += event.cached_tokens
            self.scheduler.check_integrity()
            count -= 1
            self.num_steps += 1


def encode(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text).ids
    return found


PROMPTS = [
    encode(f"Translate to French: the {color} {animal} sees the {place}.")
    for animal in ("cat", "dog", "bird")
    for color in ("black", "red")
    for place in ("house", "garden", "tree")
]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    """What each prompt's greedy answer is without a cache."""
    server = Server(num_slots=1, chunk_tokens=CONTEXT)
    for prompt in PROMPTS:
        server.add(prompt, salt=None)
    server.steps()
    assert set(server.found.values()) == {0}
    return list(server.said.values())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_with_guesses_are_those_without_them(temperature: float) -> None:
    """Among them texts that repeat their prompts; each is asked alone."""
    plain, guessing = Server(), Server(num_guesses=15)
    params = SamplingParams(40, temperature=temperature, seed=7, ignore_eos=True)
    for index, prompt in enumerate([*PROMPTS, *([*ids(seed, 6) * 3] for seed in range(6))]):
        for server in (plain, guessing):
            server.ask(Request(index, prompt, params))
            server.steps()
    assert guessing.said == plain.said
    assert guessing.num_steps < plain.num_steps


@pytest.mark.parametrize("num_slots", [1, 3, 8])
def test_answers_with_the_cache_are_those_without_it(alone: list[list[int]], num_slots: int) -> None:
    server = Server(num_slots)
    for prompt in PROMPTS:
        server.add(prompt)
        server.steps(3)
    server.steps()
    assert list(server.said.values()) == alone
    shared = len(encode("Translate to French: the ")) - 1
    assert all(found >= min(shared, 4) for found in list(server.found.values())[1:])
    assert slot_table(server.scheduler).num_copies <= 3 * len(PROMPTS), "two for a prompt, and its moves"


@pytest.mark.parametrize("room", [70, 100, 150])
def test_answers_where_memory_is_short_are_those_where_it_is_not(alone: list[list[int]], room: int) -> None:
    """What is released and taken again is computed anew; what is kept beside it is what it was."""
    server = Server(num_slots=6, room=room)
    for prompt in PROMPTS:
        server.add(prompt)
        server.steps(3)
    server.steps()
    assert list(server.said.values()) == alone
    assert server.num_releases > 0


def test_a_long_shared_beginning_is_computed_once(alone: list[list[int]]) -> None:
    server = Server(num_slots=4)
    system = ids(1, 60)
    for tail in range(8):
        server.add([*system, 100 + tail], max_tokens=5)
    server.steps()
    assert list(server.found.values()) == [0] + [60] * 7
    reference = Server(num_slots=1, chunk_tokens=CONTEXT)
    for tail in range(8):
        reference.add([*system, 100 + tail], max_tokens=5, salt=None)
    reference.steps()
    assert server.said == reference.said


def test_a_salt_and_a_disabled_cache_keep_apart_and_change_no_answer(alone: list[list[int]]) -> None:
    server = Server()
    salts = ["", "a", "b", None, "a", "", None]
    for salt in salts:
        server.add(PROMPTS[0], salt=salt)
        server.steps()
    most = len(PROMPTS[0]) - 1
    assert list(server.found.values()) == [0, 0, 0, 0, most, most, 0]
    assert all(said == alone[0] for said in server.said.values())


def test_what_warming_up_wrote_is_not_found() -> None:
    server = Server()
    server.add([0] * 20)
    server.steps()
    assert server.found == {0: 0}
