"""The manifests, rendered by kustomize: valid for Kubernetes, and about the server that this is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from llm_grpc.config import EngineConfig, ModelConfig, ServerConfig
from llm_grpc.devices import Device, parse_devices
from llm_grpc.server.health import LIVE
from llm_grpc.v1 import llm_pb2

OLDEST_KUBERNETES = "1.31"
NEWEST_KUBERNETES = "1.37"
LLM_SERVICE = llm_pb2.DESCRIPTOR.services_by_name["LLMService"].full_name


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.fixture(scope="module", params=["base", "overlays/dev", "overlays/gpu"])
def objects(
    request: pytest.FixtureRequest, repository: Path, tool: Callable[[str], str]
) -> dict[tuple[str, str], Any]:
    """All objects that one directory renders to, by kind and name."""
    command = [tool("kustomize"), "build", repository / "k8s" / request.param]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parsed = yaml.safe_load_all(rendered)
    return {(thing["kind"], thing["metadata"]["name"]): thing for thing in parsed}


@pytest.fixture
def pod(objects: dict[tuple[str, str], Any]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment", "llm-grpc"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return dict(only)


@pytest.fixture
def settings(objects: dict[tuple[str, str], Any]) -> dict[str, str]:
    return dict(objects["ConfigMap", "llm-grpc"]["data"])


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
def test_kubernetes_accepts_every_object(objects: dict[tuple[str, str], Any], version: str) -> None:
    for thing in objects.values():
        kubernetes_validate.validate(thing, version, strict=True)


def test_probes_ask_for_the_names_that_health_knows(container: dict[str, Any]) -> None:
    asked = {name: container[name]["grpc"]["service"] for name in container if name.endswith("Probe")}
    assert asked == {"startupProbe": LLM_SERVICE, "readinessProbe": LLM_SERVICE, "livenessProbe": LIVE}


def test_ports_are_those_that_the_server_listens_on(
    container: dict[str, Any], settings: dict[str, str], objects: dict[tuple[str, str], Any]
) -> None:
    grpc = port(settings["LLM_GRPC_ADDRESS"])
    metrics = port(settings["LLM_GRPC_METRICS_ADDRESS"])
    assert {entry["name"]: entry["containerPort"] for entry in container["ports"]} == {
        "grpc": grpc,
        "metrics": metrics,
    }
    assert {container[name]["grpc"]["port"] for name in container if name.endswith("Probe")} == {grpc}
    assert (grpc, metrics) == (port(ServerConfig().address), port(ServerConfig().metrics_address))
    for name in ("llm-grpc", "llm-grpc-headless"):
        (entry,) = objects["Service", name]["spec"]["ports"]
        assert (entry["port"], entry["targetPort"]) == (grpc, "grpc")
        assert entry["appProtocol"] == "kubernetes.io/h2c"


def test_the_admin_port_stays_on_loopback(settings: dict[str, str]) -> None:
    assert settings["LLM_GRPC_ADMIN_ADDRESS"].startswith("127.0.0.1:")


def test_settings_are_flags_of_serve(container: dict[str, Any], settings: dict[str, str]) -> None:
    known = {field.name for part in (ModelConfig, EngineConfig, ServerConfig) for field in fields(part)}
    names = [*settings, *(entry["name"] for entry in container["env"])]
    assert {name.removeprefix("LLM_GRPC_").lower() for name in names} <= known


def test_no_service_sets_variables_with_the_servers_prefix(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False


def test_a_pod_gets_the_time_that_a_drain_takes(pod: dict[str, Any], settings: dict[str, str]) -> None:
    drain_s = float(settings["LLM_GRPC_DRAIN_WINDOW_S"]) + float(settings["LLM_GRPC_DRAIN_LIMIT_S"])
    assert pod["terminationGracePeriodSeconds"] > drain_s
    assert "lifecycle" not in pod["containers"][0]


def test_the_pod_keeps_to_the_restricted_standard(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_gpu_goes_with_the_image_and_the_setting_for_it(
    container: dict[str, Any], pod: dict[str, Any], settings: dict[str, str]
) -> None:
    has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    assert container["image"].endswith("-cuda") is has_gpu
    assert (settings.get("LLM_GRPC_DEVICE") == "cuda") is has_gpu
    tolerated = [toleration["key"] for toleration in pod.get("tolerations", [])]
    assert tolerated == (["nvidia.com/gpu"] if has_gpu else [])
    assert parse_devices(settings.get("LLM_GRPC_DEVICE", "auto")) == ((Device("cuda"),) if has_gpu else None)
