"""Writes the skeletons that `make test-gpu` and `make bench-gpu` read. Needs the extra export.

``python -m benchmarks.gpu.prepare DIRECTORY``: ``FORMAT/SHAPE`` to compare, ``measured/SHAPE`` to measure.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.shapes import AGREEING, MEASURED
from benchmarks.gpu.skeleton import make_skeleton

COMPARED: Mapping[str, Mapping[str, str]] = {
    "fp32": {"weights": "fp32"},
    "fp16": {"weights": "fp16", "lowering": "paged"},
    "bf16": {"weights": "bf16", "lowering": "paged"},
}
"""By folder. The one in fp32 is for CPUs: what the others are compared with."""


def main(directory: Path) -> None:
    """Write all of them."""
    for folder, recipe in COMPARED.items():
        for shape in AGREEING:
            make_skeleton(shape, directory / folder / shape.name, recipe)
    for shape in MEASURED:
        make_skeleton(shape, directory / "measured" / shape.name, COMPARED["bf16"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
