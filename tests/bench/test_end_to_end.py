"""`llm-grpc bench` against a real server in a process, over real gRPC."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llm_grpc.bench.report import Report
from llm_grpc.bench.statistics import Slo, summarize
from llm_grpc.bench.usage import metrics_meter, process_meter
from llm_grpc.cli.main import main
from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.manifest import manifest_digest
from tests.rpc.process import HANG_S, ServerProcess

SMALL = ("--shape=fixed", "--prompt-tokens=12", "--output-tokens=5", "--warmup=1")
TOP_KEYS = {"format", "model", "client", "workload", "serve_flags", "slo", "interrupted", "runs"}
REQUEST_KEYS = {"index", "due_s", "start_s", "token_times_s", "prompt_tokens", "error", "cached_tokens"}
LINUX = sys.platform == "linux"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--max-running=4") as process:
        yield process


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "report.json"


def bench(server: ServerProcess, *flags: str) -> int:
    return main(["bench", f"--address={server.address}", *flags])


def report_of(file: Path) -> Report:
    return Report.model_validate_json(file.read_bytes())


def refused(capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    return str(err.splitlines()[-1])


def test_a_sweep_of_concurrencies(
    server: ServerProcess, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = f"--metrics-address={server.metrics_address}"
    slo = "--slo=ttft=100s,itl=100s"
    assert (
        bench(server, *SMALL, "--concurrency", "1", "3", "--requests=6", metrics, slo, f"--json={file}") == 0
    )
    report = report_of(file)
    assert (report.model.name, report.model.digest) == ("embedded", manifest_digest(EMBEDDED_MODEL))
    assert [str(run.load) for run in report.runs] == ["concurrency 1", "concurrency 3"]
    assert (report.interrupted, report.serve_flags, report.slo) == (False, None, Slo(ttft_s=100, itl_s=100))
    for run in report.runs:
        assert [r.index for r in run.record.requests] == list(range(6))
        assert {(r.error, r.prompt_tokens, len(r.token_times_s)) for r in run.record.requests} == {
            (None, 12, 5)
        }
        assert run.record.requests[-1].token_times_s[-1] <= run.record.wall_s
        assert run.summary == summarize(run.record, report.slo)
        assert run.summary.goodput
        assert run.summary.goodput.share == 1.0
        assert run.record.client_cpu_s
        assert not LINUX or (run.record.peak_bytes or 0) > 10_000_000
    one_by_one = report.runs[0].record.requests
    assert all(a.token_times_s[-1] <= b.start_s for a, b in pairwise(one_by_one))
    said = capsys.readouterr().out
    assert re.search(r"^ +1 at once +3 at once$", said, re.MULTILINE)
    assert re.search(r"^answered +6 of 6 +6 of 6$", said, re.MULTILINE)
    assert re.search(r"^first token, p99 +[\d.]+ m?s +[\d.]+ m?s$", said, re.MULTILINE)
    assert re.search(r"^good requests +100.0% +100.0%$", said, re.MULTILINE)


def test_the_keys_of_the_json(server: ServerProcess, file: Path) -> None:
    """What readers of the file, and the records of other servers, rely on."""
    assert bench(server, *SMALL, "--requests=1", f"--json={file}") == 0
    found: dict[str, Any] = json.loads(file.read_text())
    assert set(found) == TOP_KEYS
    (run,) = found["runs"]
    assert run["load"] == {"kind": "concurrency", "value": 1.0}
    assert set(run["record"]) == {"requests", "wall_s", "cpu_s", "peak_bytes", "client_cpu_s"}
    (request,) = run["record"]["requests"]
    assert set(request) == REQUEST_KEYS
    assert set(run["summary"]["ttft_s"]) == {"samples", "mean", "p50", "p90", "p99"}
    assert (found["format"], run["summary"]["goodput"], run["record"]["cpu_s"]) == (1, None, None)


def test_an_open_loop_and_its_duration(server: ServerProcess, file: Path) -> None:
    assert bench(server, *SMALL, "--rate=200", "--duration-s=0.1", "--seed=3", f"--json={file}") == 0
    (run,) = report_of(file).runs
    assert run.record.requests
    for request in run.record.requests:
        assert 0 < request.due_s < 0.1
        assert request.due_s <= request.start_s
    assert run.summary.completed == run.summary.requests


def test_a_trace_at_its_own_times(server: ServerProcess, tmp_path: Path, file: Path) -> None:
    requests = [
        {"prompt_token_ids": [5, 2000], "output_tokens": 2},
        {"prompt_tokens": 3, "output_tokens": 3, "arrival_s": 0.01, "prefix": {"id": "a", "tokens": 7}},
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"requests": requests}))
    assert bench(server, f"--trace={trace}", "--wrap-token-ids", f"--json={file}") == 0
    (run,) = report_of(file).runs
    found = [(r.due_s, r.prompt_tokens, len(r.token_times_s)) for r in run.record.requests]
    assert found == [(0.0, 2, 2), (0.01, 10, 3)]


def test_errors_are_counted_by_code_and_reason(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ServerProcess("--max-running=1", "--max-waiting=0") as full:
        flags = (*SMALL[:-1], "--warmup=0", "--concurrency=8", "--requests=8", f"--json={file}")
        assert bench(full, *flags) == 0
    (run,) = report_of(file).runs
    assert run.summary.completed >= 1
    assert run.summary.errors == {"RESOURCE_EXHAUSTED QUEUE_FULL": 8 - run.summary.completed}
    assert "x RESOURCE_EXHAUSTED QUEUE_FULL" in capsys.readouterr().out


def test_a_request_that_is_late_has_a_deadline(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--shape=fixed", "--prompt-tokens=500", "--output-tokens=500", "--warmup=0", "--requests=1")
    assert bench(server, *flags, "--timeout-s=0.05") == 1
    said = capsys.readouterr()
    assert "0 of 1" in said.out
    assert "1 x DEADLINE_EXCEEDED" in said.out
    assert "no request was answered" in said.err


def test_a_server_of_its_own(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "chart.png"
    flags = ("--requests=2", "--start", f"--json={file}", f"--plot={plot}", "--", "--max-running", "2")
    assert main(["bench", *SMALL, *flags]) == 0
    report = report_of(file)
    assert report.serve_flags == ("--max-running", "2")
    if LINUX:
        assert (report.runs[0].record.peak_bytes or 0) > 10_000_000
        assert report.runs[0].record.cpu_s is not None
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--rate=1", "--concurrency=1", "--start"), "--rate and --concurrency cannot be swept together"),
        (("--trace=/none.json", "--start"), "cannot read the trace /none.json: No such file or directory"),
        (("--shape=fixed", "--prompt-tokens=1:2", "--start"), "--shape fixed takes one number"),
        (("--", "--max-running", "2"), "add --start before the `--`"),
        (("--start", "--metrics-address=127.0.0.1:1"), "--metrics-address is for a running server"),
        (("--start", "--", "--max-runing=1"), "the server did not start: llm-grpc: Unknown option"),
        (("--address=127.0.0.1:1",), "the server does not tell of its model: UNAVAILABLE"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], problem: str
) -> None:
    assert main(["bench", *flags]) == 1
    assert problem in refused(capsys)


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--rate=0", "--rate: the value '0' should be greater than 0"),
        ("--concurrency=0", "--concurrency: the value '0' should be greater than or equal to 1"),
        ("--slo=fast", "--slo: the value 'fast' should be limits such as ttft=500ms"),
        ("--prompt-tokens=9:3", "--prompt-tokens: the value '9:3' should be a count of tokens"),
        ("--plot=chart.pdf", "--plot: the value 'chart.pdf' should end in .png or .html"),
        ("--json=/none/x.json", "--json: the value '/none/x.json' should be in a directory that exists"),
        ("--timeout-s=inf", "--timeout-s: the value 'inf' should be a finite number"),
    ],
)
def test_a_wrong_setting_is_one_line(capsys: pytest.CaptureFixture[str], flag: str, problem: str) -> None:
    assert main(["bench", flag]) == 2
    assert problem in refused(capsys)


def test_what_the_model_does_not_allow(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, "--shape=fixed", "--prompt-tokens=1000", "--output-tokens=100") == 1
    assert "1100 is above the model's context_tokens, 1024" in refused(capsys)
    assert bench(server, "--model=other") == 1
    assert "NOT_FOUND (MODEL_NOT_FOUND)" in refused(capsys)
    assert bench(server, "--metrics-address=127.0.0.1:1") == 1
    assert "cannot read the server's CPU time and memory" in refused(capsys)


def test_a_server_that_answers_nothing_ends_the_warm_up(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--shape=fixed", "--prompt-tokens=900", "--timeout-s=0.001") == 1
    assert "no warm-up request was answered: DEADLINE_EXCEEDED" in refused(capsys)


def test_an_interrupt_shows_what_was_measured(file: Path) -> None:
    """Ctrl-C while the second point of a sweep waits for its first arrival, which is many minutes away."""
    flags = (*SMALL, "--rate", "100", "0.0001", "--requests=2", f"--json={file}")
    command = [sys.executable, "-m", "llm_grpc.cli.main", "bench", "--start", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        seen = ""
        while "at 0.0001 requests/s" not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "interrupted; these are the figures until then" in err
    assert "Traceback" not in err
    report = report_of(file)
    assert report.interrupted
    assert [(run.summary.completed, run.summary.errors) for run in report.runs] == [(2, {}), (0, {})]
    assert "100 req/s" in out


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_what_a_process_uses() -> None:
    meter = process_meter(os.getpid())
    assert meter
    before = meter()
    sum(range(3_000_000))
    assert meter().cpu_s >= before.cpu_s > 0
    assert meter().resident_bytes >= before.resident_bytes > 1_000_000
    assert process_meter(2**30) is None


def test_what_a_running_server_says_it_uses(server: ServerProcess) -> None:
    if not LINUX:
        return
    reading = metrics_meter(server.metrics_address)()
    assert reading.cpu_s > 0
    assert reading.resident_bytes > 10_000_000
