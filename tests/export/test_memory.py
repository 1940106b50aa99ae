"""An export holds a few matrices in memory, and never the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.random_model import save_random_model, store_as

PEAK = """
import sys, threading
from pathlib import Path

import llm_grpc.export.verify
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.verify import VerifyOptions

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, anonymous())

# A machine whose memory is small beside the model.
llm_grpc.export.verify.available_memory_bytes = lambda: 2**20
source, target, weights = sys.argv[1:]
before = peak = anonymous()
done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
export(source, Path(target), "model", VerifyOptions(num_tokens=2, allow_inexact=True), Recipe(weights))
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say")
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_peak_is_a_part_of_the_model(weights: str, tmp_path: Path) -> None:
    """Weights that a file backs do not count: the system takes their pages back."""
    checkpoint = save_random_model(
        tmp_path / "checkpoint",
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=10,
        head_dim=64,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    store_as(checkpoint)
    parameters = (checkpoint / "model.safetensors").stat().st_size / 2
    run = [sys.executable, "-c", PEAK, str(checkpoint), str(tmp_path / "model"), weights]
    found = subprocess.run(run, check=True, capture_output=True, text=True, timeout=110)
    assert parameters > 160e6
    copies = int(found.stdout) / 4 / parameters
    assert copies < 0.4
