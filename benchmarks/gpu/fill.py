"""Random weights for a directory of ``skeleton``, written where the model will be run. Needs numpy alone.

``python -m benchmarks.gpu.fill DIRECTORY...``
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

POOL_VALUES = 1 << 24
"""Normal numbers that all weights are made of: drawing 16 GB anew would take minutes."""

BLOCK_VALUES = 1 << 16

Array = NDArray[Any]


def fill(directory: Path) -> None:
    """Write the data file that weights.json describes, and add it to the manifest.

    All values are of bfloat16, whatever they are stored as: formats of one shape hold the same numbers, but
    for what fp16 cannot hold of the smallest.
    """
    plan = json.loads((directory / "weights.json").read_text(encoding="utf-8"))
    path, state, end = directory / plan["data"], hashlib.sha256(), 0

    def write(part: memoryview | bytes) -> None:
        state.update(part)
        file.write(part)

    with path.open("wb") as file:
        for tensor in plan["tensors"]:
            write(bytes(tensor["offset"] - end))
            for part in _parts(tensor):
                write(part.data.cast("B"))
            end = tensor["offset"] + tensor["length"]
    manifest_path = directory / "manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    manifest["files"][plan["data"]] = {"size_bytes": end, "sha256": state.hexdigest()}
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _parts(tensor: dict[str, Any]) -> Iterator[Array]:
    """The values of a weight in its order: blocks of the pool, chosen at random."""
    num_values = int(np.prod(tensor["shape"]))
    if tensor["deviation"] == 0:
        yield _STORED[tensor["dtype"]](np.ones(num_values, np.float32))
        return
    pool = _pool(tensor["dtype"], tensor["deviation"])
    chosen = np.random.default_rng(tensor["seed"]).integers(0, len(pool), -(-num_values // BLOCK_VALUES))
    for index in chosen:
        yield pool[index][:num_values]
        num_values -= BLOCK_VALUES


@cache
def _normal() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((POOL_VALUES // BLOCK_VALUES, BLOCK_VALUES), np.float32)


@cache
def _pool(dtype: str, deviation: float) -> Array:
    return _STORED[dtype](_normal() * np.float32(deviation))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To bfloat16, away from zero at ties; kept in float32."""
    bits = (values.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def _bfloat16(values: NDArray[np.float32]) -> Array:
    """The upper halves of the numbers' bits; numpy has no type for it."""
    return (_rounded(values).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


_STORED: dict[str, Callable[[NDArray[np.float32]], Array]] = {
    "FLOAT": _rounded,
    "FLOAT16": lambda values: _rounded(values).astype(np.float16),
    "BFLOAT16": _bfloat16,
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        fill(Path(name))
        print(name)
