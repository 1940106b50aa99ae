"""What is sent, and when: shapes, arrivals, trace files."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.bench.entry import Entry, ModelLimits
from llm_grpc.bench.load import DEFAULT_REQUESTS, Load, arriving, bounded, loads
from llm_grpc.bench.settings import LoadSettings, WorkloadSettings, parse_range, parse_slo
from llm_grpc.bench.shapes import shape_entries
from llm_grpc.bench.trace import load_trace, trace_entries
from llm_grpc.errors import BenchError

LIMITS = ModelLimits(vocabulary_size=1000, context_tokens=2048, max_prompt_tokens=2047, max_tokens=2047)
TRACE = Path(__file__).parents[1] / "data" / "trace.json"
SHAPES = ["sharegpt-like", "uniform", "fixed", "shared-prefix"]
SEEDS = st.integers(0, 2**63 - 1)


def drawn(count: int, limits: ModelLimits = LIMITS, **settings: Any) -> list[Entry]:
    return list(islice(shape_entries(WorkloadSettings(**settings), limits), count))


@given(st.sampled_from(SHAPES), SEEDS)
def test_a_seed_is_a_workload_and_a_longer_one_begins_as_a_shorter_one(shape: str, seed: int) -> None:
    assert drawn(5, shape=shape, seed=seed) == drawn(9, shape=shape, seed=seed)[:5]
    assert drawn(5, shape=shape, seed=seed) != drawn(5, shape=shape, seed=(seed + 1) % 2**63)


@given(SEEDS, st.integers(2, 300), st.integers(2, 400), st.integers(1, 400), st.integers(1, 400))
def test_drawn_lengths_keep_to_every_limit_of_the_model(
    seed: int, vocabulary: int, context: int, max_prompt: int, max_tokens: int
) -> None:
    limits = ModelLimits(vocabulary, context, min(max_prompt, context - 1), max_tokens)
    for entry in drawn(20, limits, seed=seed):
        assert 1 <= len(entry.prompt) <= limits.max_prompt_tokens
        assert 1 <= entry.output_tokens <= limits.max_tokens
        assert len(entry.prompt) + entry.output_tokens <= limits.context_tokens
        assert all(0 <= token < vocabulary for token in entry.prompt)


@given(SEEDS, st.integers(1, 200), st.integers(0, 200), st.integers(1, 200), st.integers(0, 200))
def test_uniform_lengths_are_in_their_ranges(seed: int, least: int, more: int, low: int, up: int) -> None:
    ranges: dict[str, Any] = {
        "prompt_tokens": f"{least}:{least + more}",
        "output_tokens": f"{low}:{low + up}",
    }
    for entry in drawn(20, shape="uniform", seed=seed, **ranges):
        assert least <= len(entry.prompt) <= least + more
        assert low <= entry.output_tokens <= low + up


def test_both_ends_of_a_range_and_of_the_vocabulary_are_drawn() -> None:
    limits = ModelLimits(vocabulary_size=3, context_tokens=100, max_prompt_tokens=99, max_tokens=99)
    entries = drawn(200, limits, shape="uniform", prompt_tokens="1:3", output_tokens="2:4")
    assert {len(entry.prompt) for entry in entries} == {1, 2, 3}
    assert {entry.output_tokens for entry in entries} == {2, 3, 4}
    assert {token for entry in entries for token in entry.prompt} == {0, 1, 2}


def test_fixed_lengths() -> None:
    entries = drawn(10, shape="fixed", prompt_tokens="7", output_tokens="9")
    assert {(len(entry.prompt), entry.output_tokens) for entry in entries} == {(7, 9)}
    assert len({entry.prompt for entry in entries}) == 10


def test_shared_prefixes_are_taken_in_turn() -> None:
    entries = drawn(9, shape="shared-prefix", prefixes=3, prefix_tokens=50, prompt_tokens="4")
    assert [len(entry.prompt) for entry in entries] == [54] * 9
    prefixes = [entry.prompt[:50] for entry in entries]
    assert prefixes[:3] * 3 == prefixes
    assert len(set(prefixes)) == 3
    assert len({entry.prompt[50:] for entry in entries}) == 9


def test_sharegpt_like_lengths_are_what_the_docstring_says() -> None:
    wide = ModelLimits(vocabulary_size=10, context_tokens=10**6, max_prompt_tokens=10**6, max_tokens=10**6)
    entries = drawn(4000, wide)
    prompts, outputs = [len(entry.prompt) for entry in entries], [entry.output_tokens for entry in entries]
    for lengths, median, mean in ((prompts, 100, 165), (outputs, 200, 330)):
        assert np.median(lengths) == pytest.approx(median, rel=0.1)
        assert np.mean(lengths) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "fixed", "prompt_tokens": "1:2"}, "fixed takes one number"),
        ({"prompt_tokens": "5"}, "do not go with --shape sharegpt-like"),
        (
            {"shape": "fixed", "prompt_tokens": "2048"},
            "--shape fixed: prompt_tokens: 2048 is above the model's max_prompt_tokens, 2047",
        ),
        (
            {"shape": "uniform", "prompt_tokens": "1:2000", "output_tokens": "1:49"},
            "prompt_tokens and output_tokens: 2049 is above the model's context_tokens, 2048",
        ),
        (
            {"shape": "shared-prefix", "prefix_tokens": 2047},
            "--shape shared-prefix: prompt_tokens: 2111 is above",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError) as caught:
        drawn(1, **settings)
    assert message in str(caught.value)


@given(st.integers(0, 1000), st.floats(0.01, 1000))
def test_arrivals_are_repeatable_and_scale_with_the_rate(seed: int, rate: float) -> None:
    entries = drawn(20, shape="fixed", prompt_tokens="1")
    found, twice = (list(arriving(entries, Load("rate", r), seed, 0.0)) for r in (rate, 2 * rate))
    assert [e.prompt for e in found] == [e.prompt for e in entries]
    assert all(a.arrival_s < b.arrival_s for a, b in pairwise(found))
    for a, b in zip(found, twice, strict=True):
        assert b.arrival_s == pytest.approx(a.arrival_s / 2)


def test_arrivals_are_poisson() -> None:
    """Gaps with mean 1/rate and as large a deviation; 5 s hold 5 x rate arrivals, give or take."""
    entries = [Entry((1,), 1)] * 20_000
    times = [e.arrival_s for e in arriving(entries, Load("rate", 50.0), 3, 0.0)]
    gaps = np.diff(times)
    assert np.mean(gaps) == pytest.approx(0.02, rel=0.05)
    assert np.std(gaps) == pytest.approx(0.02, rel=0.05)
    within = list(arriving(entries, Load("rate", 50.0), 3, 5.0))
    assert len(within) == sum(time < 5.0 for time in times)
    assert 180 < len(within) < 320


def test_the_points_of_a_sweep() -> None:
    assert loads(LoadSettings(rate=(2, 1)), has_trace=True) == [Load("rate", 2), Load("rate", 1)]
    assert loads(LoadSettings(concurrency=(4,)), has_trace=True) == [Load("concurrency", 4)]
    assert loads(LoadSettings(), has_trace=True) == [Load("trace")]
    assert loads(LoadSettings(), has_trace=False) == [Load("concurrency", 1)]
    with pytest.raises(BenchError, match="cannot be swept together"):
        loads(LoadSettings(rate=(1,), concurrency=(1,)), has_trace=False)


def test_every_run_has_an_end() -> None:
    entries = [Entry((1,), 1)] * (2 * DEFAULT_REQUESTS)

    def count(*, has_trace: bool, **settings: Any) -> int:
        return len(list(bounded(entries, LoadSettings(**settings), has_trace=has_trace)))

    assert count(has_trace=False) == DEFAULT_REQUESTS
    assert count(has_trace=False, requests=3) == count(has_trace=True, requests=3, duration_s=1) == 3
    assert count(has_trace=True) == count(has_trace=False, duration_s=1) == len(entries)


@pytest.mark.parametrize("text", ["", "ttft", "ttft=1", "ttft=1m", "ttft=-1s", "ttft=1s,ttft=2s", "tps=1s"])
def test_a_wrong_slo(text: str) -> None:
    with pytest.raises(ValueError, match="should be limits such as"):
        parse_slo(text)


def test_slo_and_ranges_are_read() -> None:
    slo = parse_slo("ttft=500ms, e2e=1.5s")
    assert (slo.ttft_s, slo.itl_s, slo.e2e_s) == (0.5, None, 1.5)
    assert parse_range("3") == (3, 3)
    assert parse_range("3:9") == (3, 9)
    for text in ("", "0", "9:3", "a", "1:", "-1"):
        with pytest.raises(ValueError, match="should be a count"):
            parse_range(text)


def trace(tmp_path: Path, *requests: dict[str, Any], **settings: Any) -> list[Entry]:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"requests": requests}))
    return trace_entries(WorkloadSettings(trace=path, **settings), LIMITS)


def test_a_trace(tmp_path: Path) -> None:
    prefix = {"id": "system", "tokens": 30}
    given_ids, counted, other, same = trace(
        tmp_path,
        {"prompt_token_ids": [0, 999], "output_tokens": 3},
        {"prompt_tokens": 5, "output_tokens": 4, "arrival_s": 1, "prefix": prefix},
        {"prompt_tokens": 5, "output_tokens": 4, "arrival_s": 1.5, "prefix": {"id": "b", "tokens": 30}},
        {"prompt_token_ids": [7], "output_tokens": 4, "arrival_s": 1.5, "prefix": prefix},
    )
    assert given_ids == Entry((0, 999), 3, 0.0)
    assert (len(counted.prompt), counted.output_tokens, counted.arrival_s) == (35, 4, 1.0)
    assert same.prompt == (*counted.prompt[:30], 7)
    assert other.prompt[:30] != counted.prompt[:30]


def test_a_trace_is_repeatable(tmp_path: Path) -> None:
    request = {"prompt_tokens": 5, "output_tokens": 4}
    assert trace(tmp_path, request) == trace(tmp_path, request) != trace(tmp_path, request, seed=1)


def test_ids_beyond_the_vocabulary_are_wrapped_only_when_asked(tmp_path: Path) -> None:
    request = {"prompt_token_ids": [1, 2, 1000, 2345], "output_tokens": 1}
    (entry,) = trace(tmp_path, request, wrap_token_ids=True)
    assert entry.prompt == (1, 2, 0, 345)
    with pytest.raises(BenchError) as caught:
        trace(tmp_path, request)
    assert "requests[0].prompt_token_ids[2]: 1000 is not below the model's vocabulary_size, 1000" in str(
        caught.value
    )
    assert "--wrap-token-ids" in str(caught.value)


RIGHT = {"prompt_tokens": 5, "output_tokens": 4}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_tokens": 0}, "requests[1].output_tokens: the value 0 should be greater than or equal to 1"),
        ({"output_tokens": "4"}, "requests[1].output_tokens: the value '4' should be a valid integer"),
        (
            {"prompt_tokens": -3},
            "requests[1].prompt_tokens: the value -3 should be greater than or equal to 1",
        ),
        ({"arrival_s": -0.5}, "requests[1].arrival_s: the value -0.5 should be greater than or equal to 0"),
        ({"prompt_token_ids": [1]}, "requests[1]: must have prompt_token_ids or prompt_tokens, one of them"),
        ({"prompt_tokens": None}, "requests[1]: must have prompt_token_ids or prompt_tokens, one of them"),
        (
            {"prompt_tokens": None, "prompt_token_ids": [4, -1]},
            "requests[1].prompt_token_ids[1]: the value -1 should be greater than or equal to 0",
        ),
        ({"prefix": {"id": "a"}}, "requests[1].prefix.tokens: is missing"),
        ({"prompt": 3}, "requests[1].prompt: the value 3 Extra inputs are not permitted"),
        ({"output_tokens": 2044}, "requests[1]: prompt_tokens and output_tokens: 2049 is above the model's"),
        ({"output_tokens": 2048}, "requests[1]: output_tokens: 2048 is above the model's max_tokens, 2047"),
        (
            {"prefix": {"id": "a", "tokens": 2046}},
            "requests[1]: prompt_tokens: 2051 is above the model's max_prompt_tokens, 2047",
        ),
    ],
)
def test_a_wrong_entry_is_named_with_field_value_and_limit(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError) as caught:
        trace(tmp_path, RIGHT, RIGHT | wrong)
    assert f"{tmp_path / 'trace.json'}: {message}" in str(caught.value)


def test_a_trace_that_contradicts_itself(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"requests\[1\].arrival_s: 1 is before 2, the time of the request"):
        trace(tmp_path, RIGHT | {"arrival_s": 2}, RIGHT | {"arrival_s": 1})
    first, second = (RIGHT | {"prefix": {"id": "a", "tokens": count}} for count in (5, 6))
    with pytest.raises(BenchError, match=r"requests\[1\].prefix.tokens: 6 differs from 5, .* 'a' has above"):
        trace(tmp_path, first, second)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: "),
        ("[]", "the file: "),
        ("{}", "requests: is missing"),
        ('{"requests": []}', "requests: "),
        ('{"requests": [1]}', "requests[0]: the value 1 should be"),
        ("{", "the file: "),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(BenchError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    with pytest.raises(BenchError, match=r"cannot read the trace .*: No such file"):
        load_trace(tmp_path / "none.json")


def test_the_trace_of_the_repository() -> None:
    """32 requests at once: what servers are compared on."""
    requests = load_trace(TRACE).requests
    prompts = [len(r.prompt_token_ids or ()) for r in requests]
    assert (len(requests), sum(prompts), sum(r.output_tokens for r in requests)) == (32, 8405, 4256)
    assert (min(prompts), max(prompts)) == (33, 511)
    assert {r.arrival_s for r in requests} == {0.0}
    assert max(max(r.prompt_token_ids or ()) for r in requests) < 8000
