"""The real CUDA provider over a GPU that computes nothing: what can be known without one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

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
    """A paged model on a server with ``--device cuda``: blocks, recorded steps, cancels, meters."""
    make_skeleton(
        SHAPES["head64-group4"], tmp_path / "skeletons/toy", {"weights": "bf16", "lowering": "paged"}
    )
    arguments = [str(tmp_path / "skeletons"), "--toy", "--soak-s", "2", "--out", str(tmp_path)]
    command = [str(python), "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "pretended.json").read_text())
    assert found["machine"]["copied_bytes_per_s"] > 0
    (result,) = found["results"]
    assert all(figures["errors"] == {} for figures in result["figures"])
    assert result["soak"]["errors"] == {}
    assert result["soak"]["cancelled"] > 0
    assert set(result["soak"]["growth_bytes"]) == {"server", "GPU"}
