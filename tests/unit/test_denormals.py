"""Denormals are zero where a model computes, in every thread that does, and nowhere else."""

from __future__ import annotations

import platform
import sys
import threading

import numpy as np
import onnxruntime as ort
import pytest

from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.denormals import flushed_denormals
from llm_grpc.runtime.session import open_session

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="nothing is changed elsewhere"
)


def keeps_denormals() -> bool:
    return bool((np.full(64, 1e-38, np.float32) * np.float32(0.1)).any())


def test_inside_the_block_alone() -> None:
    assert keeps_denormals()
    with flushed_denormals():
        assert not keeps_denormals()
        with flushed_denormals():
            assert not keeps_denormals()
        assert not keeps_denormals()
    assert keeps_denormals()


def test_an_error_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError), flushed_denormals():
        1 // 0  # noqa: B018 - the error is what it is for
    assert keeps_denormals()


def test_other_threads_are_left_alone() -> None:
    seen: list[bool] = []
    inside, seen_it = threading.Event(), threading.Event()

    def look() -> None:
        inside.wait(60)
        seen.append(keeps_denormals())
        seen_it.set()

    thread = threading.Thread(target=look)
    thread.start()
    with flushed_denormals():
        inside.set()
        seen_it.wait(60)
    thread.join()
    assert seen == [True]


def test_loading_a_model_changes_nothing_in_the_thread_that_loads_it() -> None:
    graph = EMBEDDED_MODEL / load_manifest(EMBEDDED_MODEL).graph
    session = open_session(graph, threads=1)
    assert isinstance(session, ort.InferenceSession)
    assert keeps_denormals()
