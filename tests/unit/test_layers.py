"""Imports point down only, wherever in a file they stand."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llm_grpc"
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = "base"
"""The modules at the package's top: config, errors, sampling_params, manifest, metrics, ..."""

MAY_IMPORT = {
    "root": set[str](),
    BASE: {BASE},
    "engine": {BASE},
    "runtime": {"engine", BASE},
    "text": {"engine", BASE},
    "server": {"text", "engine", BASE, "v1", "original"},
    "client": {"v1"},
    "bench": {"client", "v1", BASE},
    "cli": {"bench", "server", "client", "text", "engine", BASE, "v1"},
    "export": {"runtime", "engine", BASE},
    "v1": set[str](),
    "original": set[str](),
}
"""What each part may import of the others; itself and the version in ``llm_grpc/__init__.py`` always."""

EXCEPTIONS = {
    "server/runners.py": {"runtime"},
    "cli/doctor.py": {"runtime"},
    "cli/export.py": {"export"},
    "cli/export_adapter.py": {"export"},
    "cli/self_test.py": {"runtime"},
    "cli/verify.py": {"export"},
}
"""The one file of a server that makes runners, what looks at its devices, the doors to export."""

EXPORT_LIBRARIES = {"onnx_ir", "torch", "transformers", "optimum", "onnx", "safetensors", "huggingface_hub"}

LIBRARIES = {
    "root": set[str](),
    BASE: {"cyclopts", "prometheus_client", "pydantic", "yaml"},
    "engine": set[str](),
    "runtime": {"numpy", "onnxruntime", "pydantic", "pynvml"},
    "text": {"jinja2", "llguidance", "tokenizers"},
    "server": {
        "google", "grpc", "grpc_channelz", "grpc_health", "grpc_reflection", "prometheus_client", "uvloop"
    },
    "client": {"google", "grpc", "grpc_health", "grpc_status"},
    "bench": {"cyclopts", "grpc", "matplotlib", "numpy", "prometheus_client", "pydantic", "rich", "uvloop"},
    "cli": {"cyclopts", "grpc", "pydantic", "rich", "yaml"},
    "export": EXPORT_LIBRARIES | {"numpy", "onnxruntime", "pydantic", "rich", "tokenizers"},
    "v1": {"google", "grpc"},
    "original": {"google", "grpc"},
}  # fmt: skip
"""What each part may import from outside, beside the standard library."""


def part_of(module: str) -> str:
    """The part that ``llm_grpc.…`` belongs to."""
    names = module.split(".")
    if len(names) == 1:
        return "root"
    if names[1] == "__main__":
        return "cli"
    return names[1] if (PACKAGE / names[1]).is_dir() else BASE


def module_of(path: Path) -> str:
    names = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports_of(source: str) -> set[str]:
    """Modules that a source imports, in functions and for types alone too. Relative imports are refused."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules |= {resolve(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            modules.add(str(name.value) if isinstance(name, ast.Constant) else "a computed name")
    return modules


def resolve(module: str, name: str) -> str:
    """``from llm_grpc import config`` imports ``llm_grpc.config``; its version is in ``llm_grpc`` itself."""
    is_module = module == "llm_grpc" and ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists())
    return f"{module}.{name}" if is_module else module


def faults_of(path: str, module: str, source: str) -> list[str]:
    """The imports of one file that its part does not allow."""
    part = part_of(module)
    parts = MAY_IMPORT[part] | {part, "root"} | EXCEPTIONS.get(path, set())
    faults = []
    for imported in sorted(imports_of(source)):
        top = imported.split(".")[0]
        inside = top == "llm_grpc"
        allowed = part_of(imported) in parts if inside else top in LIBRARIES[part] | sys.stdlib_module_names
        if not allowed:
            faults.append(f"{path} imports {imported}")
    return faults


def test_every_part_has_its_place() -> None:
    assert {part_of(module_of(path)) for path in FILES} == set(MAY_IMPORT) == set(LIBRARIES)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_point_down(path: Path) -> None:
    assert not faults_of(path.relative_to(PACKAGE).as_posix(), module_of(path), path.read_text())


def test_the_exceptions_are_needed() -> None:
    for path, parts in EXCEPTIONS.items():
        imported = {part_of(m) for m in imports_of((PACKAGE / path).read_text()) if m.startswith("llm_grpc")}
        assert parts <= imported, f"{path} needs no exception"


def test_no_cycle_of_parts() -> None:
    below: set[str] = set()
    while len(below) < len(MAY_IMPORT):
        lowest = {part for part, parts in MAY_IMPORT.items() if part not in below and parts - {part} <= below}
        assert lowest, f"a cycle among {set(MAY_IMPORT) - below}"
        below |= lowest


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/engine.py", "from llm_grpc.text.admission import Admission"),
        ("engine/engine.py", "from llm_grpc import text"),
        ("engine/engine.py", "def f():\n    import numpy as np"),
        ("engine/engine.py", "import grpc.aio"),
        ("engine/engine.py", "if TYPE_CHECKING:\n    from onnxruntime import InferenceSession"),
        ("text/generator.py", "import llm_grpc.runtime.session"),
        ("text/generator.py", "import onnxruntime"),
        ("runtime/session.py", "from llm_grpc.text.tokenizer import TextTokenizer"),
        ("server/servicer.py", "from llm_grpc.runtime import session"),
        ("server/app.py", "from llm_grpc.cli.main import main"),
        ("server/app.py", "import torch"),
        ("cli/serve.py", "from llm_grpc.export.command import export"),
        ("cli/serve.py", "importlib.import_module('llm_grpc.export.command')"),
        ("client/sync_client.py", "from llm_grpc.errors import LLMGrpcError"),
        ("client/sync_client.py", "import llm_grpc.original.llm_service_pb2"),
        ("bench/rpc.py", "from llm_grpc.server.app import Server"),
        ("bench/measure.py", "from llm_grpc.cli.child_server import child_server"),
        ("config.py", "from llm_grpc.engine.request import Request"),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str) -> None:
    assert len(faults_of(path, module_of(PACKAGE / path), source)) == 1
