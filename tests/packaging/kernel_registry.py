"""The kernels of onnxruntime-gpu, asked of its own registry on a machine without a GPU.

The providers load over libraries of CUDA that have every function they are linked with, and each of those
returns 0. That is enough to register kernels, and to run none. Needs ``cc`` and ``nm``.
``python -m tests.packaging.kernel_registry`` writes tests/data/cuda_kernels.json.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.export.cuda_kernels import DATA, NO_END
from tests.packaging.gpu_environment import gpu_python

_REPOSITORY = Path(__file__).parents[2]
_UNVERSIONED = {
    r"curand": "libcurand.so.10",
    r"cu[A-Z]": "libcuda.so.1",
    r"create|get[IP]": "libnvinfer.so.10",
}
"""Libraries of functions whose symbols name none, by how they begin."""

_LIBRARIES = re.compile(r"lib(?:cuda|cudart|cublas|cublasLt|curand|cudnn|nvinfer|nvonnxparser)\.so\.\d+")

_MACHINE_CODE = 2
"""The kind of an entry of a fat binary; 1 is PTX."""

_ASK = """
import json
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def
print(json.dumps([
    [k.domain, k.op_name, *k.version_range, k.type_constraints]
    for k in get_all_opkernel_def() if k.provider == "CUDAExecutionProvider"
]))
"""


def kernels(python: Path) -> list[list[Any]]:
    """Domain, operator, first and last version, and types by parameter of each CUDA kernel, in order."""
    with tempfile.TemporaryDirectory() as scratch:
        _write_libraries(_providers(python), Path(scratch))
        done = subprocess.run(
            [str(python), "-c", _ASK],
            env=os.environ | {"LD_LIBRARY_PATH": scratch},
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [
        ["" if domain == "ai.onnx" else domain, name, start, 0 if end == NO_END else end, types]
        for domain, name, start, end, types in found
    ]
    unique = {json.dumps(row, sort_keys=True): row for row in rows}
    return [unique[text] for text in sorted(unique)]


def linked(python: Path, provider: str) -> set[str]:
    """The libraries of NVIDIA that a provider is linked with."""
    (path,) = [path for path in _providers(python) if path.stem.endswith(provider)]
    text = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    return {name for name in re.findall(r"NEEDED.*\[(.*)\]", text) if _LIBRARIES.fullmatch(name)}


def architectures(python: Path) -> set[int]:
    """The compute capabilities, times ten, that the CUDA provider has machine code for.

    By the headers of its fat binaries, which NVIDIA's cuobjdump reads too. One that holds PTX, which a driver
    compiles, would be the number's negative.
    """
    (path,) = [path for path in _providers(python) if path.stem.endswith("cuda")]
    content, found = path.read_bytes(), set()
    for match in re.finditer(re.escape(struct.pack("<IHH", 0xBA55ED50, 1, 16)), content):
        place = match.start() + 16
        end = place + int(struct.unpack_from("<Q", content, match.start() + 8)[0])
        while place < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", content, place)
            number = int(struct.unpack_from("<I", content, place + 28)[0])
            found.add(number if kind == _MACHINE_CODE else -number)
            place += header + size
    return found


def _providers(python: Path) -> list[Path]:
    return sorted(python.parents[1].glob("lib/python*/site-packages/onnxruntime/capi/*_providers_[ct]*.so"))


def _write_libraries(providers: list[Path], directory: Path) -> None:
    wanted: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in providers:
        text = subprocess.run(
            ["nm", "-D", "-u", str(path)], capture_output=True, text=True, check=True
        ).stdout
        for symbol in re.findall(r"^\s+U (\S+)$", text, re.MULTILINE):
            name, _, version = symbol.partition("@")
            library = version or next((to for begin, to in _UNVERSIONED.items() if re.match(begin, name)), "")
            if _LIBRARIES.fullmatch(library):
                wanted[library].add((name, version))
    for library in {*wanted, "libcurand.so.10", "libnvonnxparser.so.10"}:
        _write_library(directory, library, wanted[library])


def _write_library(directory: Path, library: str, functions: set[tuple[str, str]]) -> None:
    source = directory / "stubs.c"
    source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name, _ in sorted(functions)))
    options = [f"-Wl,-soname,{library}"]
    if any(version for _, version in functions):
        versions = directory / "versions"
        versions.write_text(f"{library} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={versions}")
    command = ["cc", "-w", "-shared", "-fPIC", str(source), "-o", str(directory / library), *options]
    subprocess.run(command, check=True)


def main() -> None:
    """Write the file."""
    python = gpu_python(_REPOSITORY)
    code = "from importlib.metadata import version; print(version('onnxruntime-gpu'))"
    version = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    lines = ",\n".join(json.dumps(kernel) for kernel in kernels(python))
    DATA.write_text(f'{{"onnxruntime-gpu": "{version.strip()}", "kernels": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
