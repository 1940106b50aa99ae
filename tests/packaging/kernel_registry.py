"""What onnxruntime-gpu says of itself on a machine without a GPU: its kernels, and what it has code for.

``python -m tests.packaging.kernel_registry`` writes tests/data/cuda_kernels.json.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.export.cuda_kernels import DATA, NO_END
from tests.packaging.gpu_environment import gpu_python
from tests.packaging.pretended_gpu import LIBRARIES, pretended_gpu, providers

_REPOSITORY = Path(__file__).parents[2]
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
        done = subprocess.run(
            [str(python), "-c", _ASK],
            env=os.environ | pretended_gpu(python, Path(scratch)),
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
    (path,) = [path for path in providers(python) if path.stem.endswith(provider)]
    text = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    return {name for name in re.findall(r"NEEDED.*\[(.*)\]", text) if LIBRARIES.fullmatch(name)}


def architectures(python: Path) -> set[int]:
    """The compute capabilities, times ten, that the CUDA provider has machine code for.

    By the headers of its fat binaries, which NVIDIA's cuobjdump reads too. One that holds PTX, which a driver
    compiles, would be the number's negative.
    """
    (path,) = [path for path in providers(python) if path.stem.endswith("cuda")]
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


def main() -> None:
    """Write the file."""
    python = gpu_python(_REPOSITORY)
    code = "from importlib.metadata import version; print(version('onnxruntime-gpu'))"
    version = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    lines = ",\n".join(json.dumps(kernel) for kernel in kernels(python))
    DATA.write_text(f'{{"onnxruntime-gpu": "{version.strip()}", "kernels": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
