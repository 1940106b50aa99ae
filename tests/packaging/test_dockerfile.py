"""What the image promises, read from the Dockerfile: building it needs an engine that tests do not have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_grpc.config import ServerConfig
from llm_grpc.runtime.cuda import LIBRARIES


@pytest.fixture(scope="module")
def stages(repository: Path) -> dict[str, str]:
    text = (repository / "Dockerfile").read_text().replace("\\\n", " ")
    parts = re.split(r"^FROM (?:\S+) AS (\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def instruction(stage: str, name: str) -> str:
    (value,) = re.findall(rf"^{name} (.*)$", stage, flags=re.MULTILINE)
    return str(value)


def test_the_targets_are_cpu_by_default_and_cuda(stages: dict[str, str]) -> None:
    assert list(stages)[-1] == "cpu"
    assert "cuda" in stages


def test_it_serves_as_nobody_and_drains_on_sigterm(stages: dict[str, str]) -> None:
    runtime = stages["runtime"]
    assert instruction(runtime, "USER") == "10001:10001"
    assert instruction(runtime, "STOPSIGNAL") == "SIGTERM"
    assert json.loads(instruction(runtime, "ENTRYPOINT")) == ["llm-grpc"]
    assert json.loads(instruction(runtime, "CMD")) == ["serve"]
    assert instruction(runtime, "HEALTHCHECK").endswith('CMD ["llm-grpc", "health"]')


def test_it_exposes_the_ports_of_the_configuration(stages: dict[str, str]) -> None:
    config = ServerConfig()
    addresses = (config.address, config.admin_address, config.metrics_address)
    ports = [address.rpartition(":")[2] for address in addresses]
    assert instruction(stages["runtime"], "EXPOSE").split() == ports


def test_the_target_for_gpus_asks_for_the_driver_and_brings_the_runtime(
    stages: dict[str, str], repository: Path
) -> None:
    assert "/tmp/cuda.txt" in stages["cuda-environment"]
    given = dict(pair.split("=") for pair in instruction(stages["cuda"], "ENV").split())
    assert given == {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    lock = (repository / "requirements/cuda.txt").read_text()
    assert {"onnxruntime-gpu", "nvidia-ml-py"} <= set(re.findall(r"^([a-z-]+)==", lock, re.MULTILINE))
    cuda = {package for package in LIBRARIES.values() if f"\n{package}==" in lock}
    assert cuda == set(LIBRARIES.values())


def test_everything_from_a_registry_is_locked(stages: dict[str, str]) -> None:
    installs = re.findall(r"pip install [^&\n]*", "\n".join(stages.values()))
    assert installs
    for command in installs:
        assert "--require-hashes" in command or command.endswith("--no-deps /tmp/wheels/*.whl"), command
