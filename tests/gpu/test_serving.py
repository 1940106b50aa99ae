"""A server on a GPU: under load with cancels nothing fails, and no memory grows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.gpu.machine import gpu_meter, resident_meter
from benchmarks.gpu.soak import Plan, soak
from llm_grpc.cli.child_server import child_server, serve_command
from llm_grpc.cli.main import main
from llm_grpc.runtime.gpus import Gpu
from tests.gpu.conftest import ready

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

MOST_GROWTH_BYTES = 64 << 20


def test_a_soak_with_cancels(gpu: Gpu, skeletons: Path, filled: list[Path]) -> None:
    model = ready(skeletons / "bf16" / "head64-group4", filled)
    flags = [f"--model={model}", "--device=cuda", "--max-running=64", "--max-waiting=1024"]
    with child_server(120.0, serve_command(flags)) as server:
        meters = {"server": resident_meter(server.pid), "GPU": gpu_meter()}
        found = asyncio.run(soak(server.address, Plan(duration_s=60.0), meters))
    assert found.errors == {}
    assert found.finished > 0
    assert found.cancelled > 0
    for meter in meters:
        assert found.growth_bytes(meter) <= MOST_GROWTH_BYTES, found.memory[meter]


def test_the_doctor_asks_the_embedded_model(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cuda"]) == 0, capsys.readouterr().out
    assert "cuda:0 model    passed  embedded: " in capsys.readouterr().out


def test_the_doctor(
    gpu: Gpu, skeletons: Path, filled: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ready(skeletons / "bf16" / "head64-group4", filled)
    assert main(["doctor", "--device", "cuda", "--model", str(model)]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "cuda:0 product  passed" in out
    assert "cuda:0 model    passed" in out
