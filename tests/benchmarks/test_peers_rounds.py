from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.contestants import CONTESTANTS, chosen
from benchmarks.peers.harness import MAX_RUNNING, WORKS, batches, padded, requests_of
from benchmarks.peers.rounds import Entry, Settings, order, run_once, run_rounds

FAKE = """
import os, sys, time
from contextlib import contextmanager
from benchmarks.peers.harness import main

class Fake:
    processes = [os.getpid()]
    def __init__(self, most):
        self.most = most
    def run(self, requests):
        for start in range(0, len(requests), self.most):
            batch = requests[start : start + self.most]
            for request in batch:
                request.begin()
            for _ in range(max(request.max_tokens for request in batch)):
                for request in batch:
                    request.stamp()

@contextmanager
def load(model, threads):
    if model.name == "broken":
        raise ValueError("there | is no such kernel")
    if model.name == "hangs":
        time.sleep(60)
    yield Fake(17 if model.name == "greedy" else 16)

main(load, ["pytest"])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "contestant.py"
    path.write_text(FAKE, encoding="utf-8")
    return path


@pytest.fixture
def settings(repository: Path) -> Settings:
    return Settings(repository / "tests/data/trace.json", timeout_s=30)


def _entry(name: str, script: Path, model: str = "fine") -> Entry:
    return Entry(name, (sys.executable, str(script)), Path(model))


@pytest.mark.parametrize("work", WORKS)
def test_a_contestant_does_a_work_in_its_process(script: Path, settings: Settings, work: str) -> None:
    outcome = run_once(_entry("fake", script), work, 0, settings)

    assert outcome.error is None
    assert outcome.versions == {"pytest": pytest.__version__}
    assert outcome.figures["peak_bytes"] > 0


def test_who_fails_is_named_and_the_others_go_on(script: Path, settings: Settings) -> None:
    entries = [_entry("broken", script, "broken"), _entry("fine", script)]

    outcomes = list(run_rounds(entries, ["single"], 2, settings))

    assert [(o.name, o.round, o.error is None) for o in outcomes] == [
        ("broken", 0, False),
        ("fine", 0, True),
        ("fine", 1, True),
        ("broken", 1, False),
    ]
    assert outcomes[0].error == "exit code 1: ValueError: there | is no such kernel"


def test_who_runs_more_at_once_than_the_others_may_fails(script: Path, settings: Settings) -> None:
    outcome = run_once(_entry("fake", script, "greedy"), "trace", 0, settings)

    assert outcome.error == "exit code 1: RuntimeError: 17 requests ran at once, and 16 may"


def test_who_hangs_is_ended(script: Path, settings: Settings) -> None:
    began = time.monotonic()

    outcome = run_once(_entry("fake", script, "hangs"), "single", 0, Settings(settings.trace, timeout_s=2))

    assert outcome.error == "it did not end within 2 s"
    assert time.monotonic() - began < 20


def test_who_cannot_start_says_so(tmp_path: Path, settings: Settings) -> None:
    outcome = run_once(_entry("fake", tmp_path / "missing.py"), "single", 0, settings)

    assert outcome.error
    assert "No such file" in outcome.error


@given(st.lists(st.integers()), st.integers(0, 9))
def test_every_round_has_everybody_and_turns_around(names: list[int], number: int) -> None:
    assert sorted(order(names, number)) == sorted(names)
    assert order(names, number + 1) == list(reversed(order(names, number)))


def test_the_works_are_what_the_table_says(settings: Settings) -> None:
    (trace,), (single,) = requests_of("trace", settings.trace), requests_of("single", settings.trace)
    decode = list(requests_of("decode", settings.trace))

    assert len(trace) == 32
    assert [(len(r.prompt), r.max_tokens) for r in single] == [(512, 128)]
    assert [len(group) for group in decode] == [1, 4, 8, 16]
    assert [len(batch) for batch in batches(trace)] == [MAX_RUNNING, MAX_RUNNING]
    ids, mask = padded(trace)
    assert {len(row) for row in ids} == {len(row) for row in mask} == {max(len(r.prompt) for r in trace)}


def test_contestants_are_chosen_by_parts_of_their_names() -> None:
    assert chosen("") == list(CONTESTANTS)
    assert [c.name for c in chosen("optimum int8, GENAI int4")] == [
        "onnxruntime-genai int4",
        "openvino-genai int4",
        "optimum int8",
        "MLServer optimum int8",
    ]
    with pytest.raises(ValueError, match="no contestant is called 'vllm'"):
        chosen("vllm")


def test_every_contestant_has_its_files(repository: Path) -> None:
    folder = repository / "benchmarks" / "peers"
    for contestant in CONTESTANTS:
        assert contestant.path.exists()
        assert (
            contestant.environment == "ours"
            or (folder / contestant.environment / "requirements.txt").exists()
        )
        if contestant.convert:
            assert (folder / contestant.convert.partition(":")[0] / "convert.py").exists()
    assert len({contestant.name for contestant in CONTESTANTS}) == len(CONTESTANTS)
