"""Bars on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from llm_grpc.export.progress import show_progress

TWO_STAGES = """
from llm_grpc.export.progress import show_progress

with show_progress(2) as progress:
    progress.stage("first [stage]")
    progress.part(1, 2)
    progress.say("a line")
    progress.stage("second")
"""


def test_a_log_has_a_line_for_each_stage(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), show_progress(2) as progress:
        progress.stage("first")
        progress.part(1, 2)
        progress.say("a line")
        progress.stage("second")
    assert caplog.messages == ["[1/2] first", "a line", "[2/2] second"]


def test_a_terminal_has_a_finished_bar_for_each_stage() -> None:
    main, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", TWO_STAGES], stderr=terminal, env=env)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # what Linux says when the last writer has gone
        pass
    os.close(main)
    assert process.wait() == 0
    text = shown.decode()
    assert "a line" in text
    *_, first, second = (line for line in text.splitlines() if "stage]" in line or "second" in line)
    assert "✓ [1/2] first [stage]" in first
    assert "✓ [2/2] second" in second
