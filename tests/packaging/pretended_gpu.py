"""ONNX Runtime's CUDA provider on a machine without a GPU: it loads, plans and runs, and nothing is computed.

What is linked with CUDA's libraries gets libraries with the same functions. Those of pretended_gpu.c keep
memory and copy it; all others return 0, and so does the launch of a kernel. What a session checks it checks
for real: that each node has a place, the types, shapes and devices of what is bound, that steps can be
recorded. Needs ``cc`` and ``nm``.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")

LIBRARIES = re.compile(r"lib(?:cuda|cudart|cublas|cublasLt|curand|cudnn|nvinfer|nvonnxparser)\.so\.\d+")
"""Those of NVIDIA that a provider may be linked with."""


_UNVERSIONED = {"cu[A-Z]": "libcuda.so.1", "create|get[IP]": "libnvinfer.so.10"}
"""Libraries of functions whose symbols name none, by how they begin."""

_WITHOUT_FUNCTIONS = ("libcurand.so.10", "libnvonnxparser.so.10")
"""What the providers are linked with for nothing."""

_RUNTIME, _DRIVER = "libcudart.so.13", "libnvidia-ml.so.1"


def pretended_gpu(python: Path, directory: Path) -> dict[str, str]:
    """Write the libraries to ``directory``; the variables with which ``python`` finds them."""
    wanted: dict[str, set[str]] = defaultdict(set)
    versioned = set()
    for path in providers(python):
        for name, version in _missing(path):
            library = version or next((to for begin, to in _UNVERSIONED.items() if re.match(begin, name)), "")
            if LIBRARIES.fullmatch(library):
                wanted[library].add(name)
                versioned |= {library} if version else set()
    answered = set(re.findall(r"^(?:int|const char \*) ?\*?(\w+)\(", SOURCE.read_text(), re.MULTILINE))
    for library in {*wanted, *_WITHOUT_FUNCTIONS, _DRIVER}:
        zeros = "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(wanted[library] - answered))
        included = {_RUNTIME: f'#define RUNTIME\n#include "{SOURCE}"\n', _DRIVER: f'#include "{SOURCE}"\n'}
        _compile(directory, library, included.get(library, "") + zeros, library in versioned)
    return {"LD_LIBRARY_PATH": str(directory)}


def providers(python: Path) -> list[Path]:
    """The libraries of ONNX Runtime's providers for GPUs, in an interpreter's environment."""
    return sorted(python.parents[1].glob("lib/python*/site-packages/onnxruntime/capi/*_providers_[ct]*.so"))


def _missing(path: Path) -> list[tuple[str, str]]:
    """The functions that a library takes from others, and the versions they have to be of."""
    text = subprocess.run(["nm", "-D", "-u", str(path)], capture_output=True, text=True, check=True).stdout
    return [(name, version) for name, version in re.findall(r"^\s+U (\w+)@?(\S*)$", text, re.MULTILINE)]


def _compile(directory: Path, library: str, source: str, has_versions: bool) -> None:
    code, versions = directory / "code.c", directory / "versions"
    code.write_text(source)
    versions.write_text(f"{library} {{ global: *; }};\n")
    options = [f"-Wl,-soname,{library}", *([f"-Wl,--version-script={versions}"] if has_versions else [])]
    subprocess.run(
        ["cc", "-w", "-shared", "-fPIC", str(code), "-o", str(directory / library), *options], check=True
    )
