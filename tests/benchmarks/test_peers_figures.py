from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.figures import figures, spread
from benchmarks.peers.record import BadRecord, RunRecord, load_record
from tests.benchmarks.records import record, request

TIMES = st.lists(st.floats(0.001, 100), min_size=1, max_size=20).map(sorted)


def _figures(*requests: dict[str, Any], **changes: Any) -> dict[str, float]:
    return figures(RunRecord.model_validate(record(*requests, **changes)))


def test_a_record_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record(request([1.0, 2.0]))), encoding="utf-8")

    assert load_record(path).requests[0].token_times_s == (1.0, 2.0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record(request([2.0, 1.0])), "must not decrease"),
        (record(request([1.0], max_tokens=2)), "1 tokens came where max_tokens is 2"),
        (record(), "at least 1 item"),
        (record(request([1.0]), cpu_s=-1), "cpu_s"),
        (record(request([], max_tokens=3, error="UNAVAILABLE: gone")), "1 of 1 requests failed: UNAVAILABLE"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(broken), encoding="utf-8")

    with pytest.raises(BadRecord, match=message):
        load_record(path)


def test_a_record_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="left no record"):
        load_record(tmp_path / "none.json")


def test_the_trace_counts_from_the_first_request_to_the_last_token() -> None:
    found = _figures(request([1.0, 3.0]), request([2.0, 4.0]))

    assert found["tokens_per_s"] == 1.0
    assert found["ttft_p50_s"] == 1.5
    assert found["itl_p50_s"] == 2.0


def test_tokens_that_all_came_at_once_have_no_gaps_and_no_speed() -> None:
    assert "itl_p50_s" not in _figures(request([4.0, 4.0]))
    assert "decode_tokens_per_s" not in _figures(request([4.0, 4.0]), work="single")
    assert "tokens_per_s_1" not in _figures(request([4.0, 4.0], group=1), work="decode")


def test_one_request_has_a_prefill_and_a_decode() -> None:
    found = _figures(request([0.5, 1.0, 1.5], prompt_tokens=512), work="single")

    assert found["prefill_tokens_per_s"] == 1024
    assert found["decode_tokens_per_s"] == 2


def test_decoding_counts_while_all_of_the_group_decode() -> None:
    found = _figures(
        request([1.0, 2.0, 3.0], group=2),
        request([2.0, 3.0, 4.0], group=2),
        request([5.0, 5.5], group=1),
        work="decode",
    )

    assert found["tokens_per_s_2"] == 2
    assert found["tokens_per_s_1"] == 2


@given(st.lists(TIMES, min_size=1, max_size=8))
def test_figures_of_a_trace_hold_together(times: list[list[float]]) -> None:
    found = _figures(*(request(one) for one in times))

    assert found["tokens_per_s"] == pytest.approx(sum(map(len, times)) / max(one[-1] for one in times))
    assert found["ttft_p50_s"] <= found["ttft_p99_s"]
    assert found.get("itl_p50_s", 0) <= found.get("itl_p99_s", 0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_the_median_lies_within_the_spread(values: list[float]) -> None:
    found = spread([{"x": value} for value in values])["x"]

    assert found.least == min(values)
    assert found.most == max(values)
    assert found.least <= found.median <= found.most


def test_a_figure_that_some_rounds_lack_is_that_of_the_others() -> None:
    assert spread([{"x": 1.0}, {"y": 2.0}])["x"].median == 1.0
