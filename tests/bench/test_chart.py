"""The chart and the page, from made-up reports."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.bench.chart import draw, save_chart
from llm_grpc.bench.figures import sections
from llm_grpc.bench.load import Load
from llm_grpc.bench.record import RunRecord
from llm_grpc.bench.report import ClientFacts, ModelFacts, Report, RunReport
from llm_grpc.bench.statistics import Slo, summarize
from tests.bench.records import RUNS

MODEL = ModelFacts(name="tiny <model>", digest="sha256:0", architecture="llama", weights="fp32")


def report(*runs: RunRecord, kind: str = "rate", slo: Slo | None = None) -> Report:
    return Report.model_validate(
        {
            "model": MODEL,
            "client": ClientFacts(),
            "workload": "fixed, seed 0",
            "serve_flags": None,
            "slo": slo,
            "runs": [
                RunReport(load=Load(kind, value), summary=summarize(run, slo), record=run)  # type: ignore[arg-type]
                for value, run in zip((8.0, 1.0, 2.0, 64.0), runs, strict=False)
            ],
        }
    )


@settings(max_examples=5, deadline=None)
@given(
    st.lists(RUNS, max_size=4),
    st.sampled_from(["rate", "concurrency"]),
    st.none() | st.builds(Slo, ttft_s=st.floats(0, 10), e2e_s=st.floats(0, 10)),
)
def test_any_report_can_be_drawn(runs: list[RunRecord], kind: str, slo: Slo | None) -> None:
    figure = draw(report(*runs, kind=kind, slo=slo))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Time to first token", "Time between tokens", "Time to the whole answer", "Throughput"]
    assert all(axes.get_ylabel() for axes in figure.axes)


def a_run(first_s: float) -> RunRecord:
    times = [first_s, first_s + 0.25]
    request = {"index": 0, "due_s": 0, "start_s": 0, "token_times_s": times, "prompt_tokens": 3}
    return RunRecord.model_validate({"requests": [request], "wall_s": 4.0})


def test_the_curves_are_the_figures_in_the_order_of_the_load() -> None:
    ttft, _, _, throughput = draw(report(a_run(0.3), a_run(0.1), a_run(0.2), slo=Slo(ttft_s=0.25))).axes
    lines = {line.get_label(): line for line in ttft.get_lines()}
    assert list(lines["p50"].get_xdata()) == [1.0, 2.0, 8.0]
    assert list(lines["p99"].get_ydata()) == pytest.approx([100.0, 200.0, 300.0])
    assert (ttft.get_ylabel(), ttft.get_xlabel()) == ("milliseconds", "offered load (requests/s)")
    assert lines["SLO"].get_ydata()[0] == pytest.approx(250.0)
    whole, good = throughput.get_lines()
    assert (list(whole.get_ydata()), list(good.get_ydata())) == ([0.5] * 3, [0.5, 0.5, 0.0])


def test_a_far_limit_does_not_flatten_the_curves() -> None:
    ttft = draw(report(a_run(0.1), slo=Slo(ttft_s=10.0))).axes[0]
    assert ttft.get_title(loc="right") == "SLO 10.00 s"
    assert ttft.get_ylim()[1] < 1000


class Balanced(HTMLParser):
    """Fails where a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"th", "td"}:
            self.cells.append(data)


def test_the_page_holds_the_chart_and_every_figure(tmp_path: Path) -> None:
    path, made = tmp_path / "page.html", report(a_run(0.1), a_run(0.2))
    save_chart(made, path)
    text = path.read_text(encoding="utf-8")
    page = Balanced()
    page.feed(text)
    assert page.open == []
    assert text.count("<svg") == 1
    assert not re.search(r"""(src|href)=["']?https?:""", text)
    assert "tiny &lt;model&gt;: fixed, seed 0" in text
    for run in made.runs:
        for section in sections(run.summary):
            for label, value in section:
                assert {label, value} <= set(page.cells)


def test_without_the_extra_it_says_what_to_install_before_it_measures(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None"
    run = "from llm_grpc.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", f"{hide}; {run}", "bench", f"--plot={tmp_path / 'x.png'}", "--start"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"llm-grpc: matplotlib\S* is not installed: install llm-grpc\[bench\]", line)
