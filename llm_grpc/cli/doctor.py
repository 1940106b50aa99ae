from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llm_grpc import __version__
from llm_grpc.cli.extras import needs_extra
from llm_grpc.config import EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL
from llm_grpc.cpus import threads_to_use
from llm_grpc.devices import CPU, Device, parse_devices
from llm_grpc.errors import LLMGrpcError
from llm_grpc.machine import available_memory_bytes, format_bytes, total_memory_bytes
from llm_grpc.manifest import load_manifest

if TYPE_CHECKING:
    from llm_grpc.cli.self_test import Outcome
    from llm_grpc.runtime.gpus import Driver

INSTALL = "install llm-grpc[cpu] or llm-grpc[cuda]"


@dataclass(frozen=True)
class Findings:
    """What is here. ``no_gpu`` says why no GPU can be used; it is empty where one may be."""

    software: dict[str, str]
    machine: dict[str, str]
    providers: list[str]
    driver: Driver | None
    no_gpu: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def is_healthy(self) -> bool:
        """Whether no test failed."""
        return all(outcome.passed is not False for outcome in self.outcomes)


def _check_devices(_type: object, text: str) -> None:
    parse_devices(text)


def doctor(
    *,
    device: Annotated[str, Parameter(validator=_check_devices)] = "auto",
    model: Path = EMBEDDED_MODEL,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Print what this machine has for serving, and test it; return the exit code.

    Parameters
    ----------
    device
        What is tested: cpu, cuda or cuda:N; auto is all that there is.
    model
        Model directory to generate with, on the devices that it is for; else the embedded model.
    as_json
        Print one JSON object instead.
    """
    with needs_extra(INSTALL):
        found = examine(parse_devices(device), model)
    print(json.dumps(_as_json(found), indent=2) if as_json else _page(found))
    return 0 if found.is_healthy else 1


def examine(asked: tuple[Device, ...] | None, model: Path) -> Findings:
    """Look, then test: the devices ``asked``, or where that is None the CPU and the GPUs.

    A GPU that cannot be used is a fault where it was asked for, or where this build is one for GPUs.
    """
    from llm_grpc.runtime import cuda  # noqa: PLC0415 - `doctor --help` needs no runtime

    driver, no_gpu = _driver()
    found = Findings(_software(), _machine(), cuda.providers(), driver, no_gpu)
    if asked is None or CPU in asked:
        found.outcomes.extend(_test_cpu(model))
    gpus = [device for device in asked or () if device.kind == "cuda"]
    if asked is None:
        gpus = [Device("cuda", index) for index in range(len(driver.gpus) if driver else 0)]
        if not gpus and cuda.PROVIDER in found.providers:
            gpus = [Device("cuda")]
    for gpu in gpus:
        found.outcomes.extend(_test_gpu(gpu, model, is_needed=asked is not None))
    return found


def _driver() -> tuple[Driver | None, str]:
    from llm_grpc.runtime import cuda, gpus  # noqa: PLC0415 - as above

    driver = None
    try:
        driver = gpus.find_driver()
        cuda.check_driver(driver)
        cuda.check_build()
    except LLMGrpcError as fault:
        return driver, str(fault)
    return driver, ""


def _software() -> dict[str, str]:
    from llm_grpc.runtime import cuda  # noqa: PLC0415 - as above

    found = {
        "llm-grpc": __version__,
        "Python": platform.python_version(),
        "onnxruntime": cuda.installed_runtime(),
    }
    packages = {name: _version(name) for name in sorted({*cuda.LIBRARIES.values(), "nvidia-ml-py"})}
    return found | {name: known for name, known in packages.items() if known}


def _machine() -> dict[str, str]:
    threads = threads_to_use()
    free, total = map(format_bytes, (available_memory_bytes(), total_memory_bytes()))
    return {
        "system": platform.platform(),
        "threads": f"{threads.number}: {threads.reason}",
        "memory": f"{free} of {total} available",
    }


def _test_cpu(model: Path) -> list[Outcome]:
    from llm_grpc.cli.self_test import answer, multiply  # noqa: PLC0415 - as above

    runs_here = load_manifest(model).lowering == "slots"
    return [multiply(CPU), answer(CPU, model if runs_here else EMBEDDED_MODEL)]


def _test_gpu(gpu: Device, model: Path, is_needed: bool) -> list[Outcome]:
    from llm_grpc.cli.self_test import Outcome, answer, multiply  # noqa: PLC0415 - as above
    from llm_grpc.runtime import cuda  # noqa: PLC0415 - as above

    try:
        cuda.require_gpu(gpu.index)
    except LLMGrpcError as fault:
        fails = is_needed or cuda.PROVIDER in cuda.providers()
        return [Outcome(str(gpu), "usable", False if fails else None, str(fault))]
    runs_there = load_manifest(model).lowering == "paged"
    return [multiply(gpu), answer(gpu, model if runs_there else EMBEDDED_PAGED_MODEL)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _as_json(found: Findings) -> dict[str, object]:
    return {"healthy": found.is_healthy, **asdict(found)}


def _page(found: Findings) -> str:
    rows = {**found.software, **found.machine, "providers": ", ".join(found.providers)}
    if found.driver:
        rows["driver"] = f"{found.driver.version}, CUDA up to {found.driver.cuda}"
        for index, gpu in enumerate(found.driver.gpus):
            free, total = map(format_bytes, (gpu.free_bytes, gpu.total_bytes))
            rows[f"cuda:{index}"] = f"{gpu.name}, compute capability {gpu.capability}, {free} of {total} free"
    if found.no_gpu:
        rows["no GPU"] = found.no_gpu
    said = {True: "passed", False: "FAILED", None: "not run"}
    tests = [(f"{o.device} {o.test}", f"{said[o.passed]:8}{o.detail}") for o in found.outcomes]
    return "\n\n".join((_table([*rows.items()]), _table(tests)))


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:{width}}  {value}" for key, value in rows)
