"""The real CUDA provider over a GPU that computes nothing: what can be known without one."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu.fill import fill
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.skeleton import make_skeleton
from tests.export.random_model import save_random_model
from tests.packaging.gpu_environment import gpu_python
from tests.packaging.pretended_gpu import pretended_gpu

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PLACES = """
import json, sys
from pathlib import Path
import onnxruntime as ort
options = ort.SessionOptions()
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
provider = ("CUDAExecutionProvider", {"enable_cuda_graph": sys.argv[2]})
session = ort.InferenceSession(sys.argv[1], options, providers=[provider], enable_fallback=0)
found = session.get_provider_graph_assignment_info()
print(json.dumps([[part.ep_name, node.op_type] for part in found for node in part.get_nodes()]))
"""


SERVED = """
from llm_grpc.cli.child_server import child_server, serve_command
from llm_grpc.client.sync_client import Client
with child_server(100.0, serve_command(["--device=cuda"])) as server, Client(server.address) as client:
    print(client.generate("Hello", max_tokens=8, ignore_eos=True).usage.completion_tokens)
"""


@pytest.fixture(scope="module")
def python(repository: Path) -> Path:
    return gpu_python(repository)


@pytest.fixture(scope="module")
def variables(python: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    here = {"PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    return os.environ | here | pretended_gpu(python, tmp_path_factory.mktemp("cuda"))


def test_the_doctor_finds_the_gpu_and_that_it_computes_nothing(
    python: Path, variables: dict[str, str]
) -> None:
    command = [str(python), "-m", "llm_grpc.cli.main", "doctor", "--device", "cuda", "--json"]
    done = subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["no_gpu"] == ""
    assert [(gpu["name"], gpu["capability"]) for gpu in found["driver"]["gpus"]] == [("pretended", [9, 0])]
    assert [(o["device"], o["test"], o["passed"]) for o in found["outcomes"]] == [
        ("cuda:0", "product", False),
        ("cuda:0", "model", False),
    ]
    product, model = (outcome["detail"] for outcome in found["outcomes"])
    assert product.startswith("a largest error of ")
    assert model.startswith("embedded answers [")


def test_the_embedded_model_is_served(python: Path, variables: dict[str, str]) -> None:
    """``serve --device cuda`` alone; what it answers is of no meaning."""
    done = subprocess.run(
        [str(python), "-c", SERVED], env=variables, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "8"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_node_of_a_model_in_16_bits_is_placed_on_the_gpu(
    python: Path, variables: dict[str, str], tmp_path: Path, dtype: str
) -> None:
    from tests.export.test_half import DTYPES, export_as  # noqa: PLC0415 - takes torch

    model = export_as(save_random_model(tmp_path / "checkpoint"), tmp_path / "model", DTYPES[dtype])
    graph = model.model_dir / "model.onnx"
    done = subprocess.run(
        [str(python), "-c", PLACES, str(graph), "0"],
        env=variables,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    placed = json.loads(done.stdout.splitlines()[-1])
    assert [node for provider, node in placed if provider != "CUDAExecutionProvider"] == []
    assert sum(node == "GroupQueryAttention" for _, node in placed) == 6


def test_the_benchmark_of_gpus_runs_through_grpc(
    python: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """A paged model on a server with ``--device cuda``: blocks, recorded steps, cancels, meters.

    The server records each size of decode step twice before it serves, and nothing after that.
    """
    log = tmp_path / "calls"
    make_skeleton(
        SHAPES["head64-group4"], tmp_path / "skeletons/toy", {"weights": "bf16", "lowering": "paged"}
    )
    arguments = [str(tmp_path / "skeletons"), "--toy", "--soak-s", "2", "--out", str(tmp_path)]
    command = [str(python), "-m", "benchmarks.gpu", *arguments]
    env = variables | {"PRETENDED_GPU_LOG": str(log)}
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "pretended.json").read_text())
    assert found["machine"]["copied_bytes_per_s"] > 0
    (result,) = found["results"]
    assert all(figures["errors"] == {} for figures in result["figures"])
    assert result["soak"]["errors"] == {}
    assert result["soak"]["cancelled"] > 0
    assert set(result["soak"]["growth_bytes"]) == {"server", "GPU"}
    calls = Counter(log.read_text().splitlines())
    assert calls["record"] == 2 * len({1, 2, 3, 4, 6, 8}), "of at most 8 rows"
    assert calls["replay"] > calls["record"]


THREADS = """
import json, sys
from pathlib import Path
from llm_grpc.devices import Device
from llm_grpc.engine.step_plan import BlockGrant, DecodeRow, PrefillChunk, Sample, StepPlan
from llm_grpc.engine.warm_up import warm_up
from llm_grpc.engine.worker import Worker
from llm_grpc.manifest import load_manifest
from llm_grpc.runtime.cuda import require_gpu
from llm_grpc.runtime.paged_runner import PagedRunner
from llm_grpc.sampling_params import SamplingParams

model, log = map(Path, sys.argv[1:])
require_gpu(0)
runner = PagedRunner(model, load_manifest(model), 16, 4, 600, 516, (Device("cuda", 0),), threads=1)
worker = Worker("steps")

def found(function):
    before = len(log.read_text().splitlines()) if log.exists() else 0
    worker.submit(function).result()
    lines = log.read_text().splitlines()[before:]
    return [lines.count("record"), lines.count("replay")]

def step(rows, position, chunks=()):
    samples = tuple(Sample(row, row, 0, SamplingParams(1)) for row in range(rows))
    plan = StepPlan(tuple(DecodeRow(row, 0, position) for row in range(rows)), chunks, samples)
    return lambda: runner.run(plan)

all_found = {"warm": found(lambda: warm_up(runner, 4, 512, block_size=256, context_tokens=600))}
all_found["decode"] = found(step(3, 5))
all_found["mixed"] = found(step(2, 5, (PrefillChunk(3, 0, (1, 2)),)))
all_found["after"] = found(step(3, 6))
all_found["long"] = found(step(4, 512))
binds = runner.num_binds
found(step(3, 7)), found(step(2, 512))
all_found["binds"] = runner.num_binds - binds
worker = Worker("another")
all_found["another thread"] = found(step(3, 5))
hosts = [stage._host for step in runner._bindings.values() for stage in step._stages]
all_found["locked"] = [len(hosts), sum(host.is_locked for host in hosts)]
all_found["pinned"] = log.read_text().splitlines().count("pinned")
print(json.dumps(all_found))
"""


def test_steps_with_chunks_are_not_recorded_and_others_in_the_warm_up_alone(
    python: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """A recording serves the thread that made it, before and after steps with chunks."""
    model = tmp_path / "model"
    make_skeleton(SHAPES["head64-group4"], model, {"weights": "bf16", "lowering": "paged"})
    fill(model)
    log = tmp_path / "calls"
    done = subprocess.run(
        [str(python), "-c", THREADS, str(model), str(log)],
        env=variables | {"PRETENDED_GPU_LOG": str(log)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    records, replays = found.pop("warm")
    sizes = {"1", "2", "3", "4", "with chunks"}
    assert found.pop("locked") == [len(sizes)] * 2
    assert found.pop("pinned") > 0
    assert records == 2 * len({1, 2, 3, 4})
    assert replays >= records
    assert found == {
        "decode": [0, 1],
        "mixed": [0, 0],
        "after": [0, 1],
        "long": [0, 1],
        "binds": 0,
        "another thread": [1, 1],
    }
