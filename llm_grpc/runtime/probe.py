"""A product of matrices on a device: whether its driver, its libraries and their kernels work together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_grpc.devices import Device
from llm_grpc.runtime.session import open_session

GRAPH = Path(__file__).with_name("probe.onnx")
"""``y = a b`` in float16: ``a [rows, depth]``, ``b [depth, columns]``."""

_SIZE = 256


def product_error(device: Device) -> float:
    """The largest error of a product of two random matrices in float16, relative to its largest number; NaN
    or infinity where the product has such numbers.

    Raises:
        StartupError: the provider of ``device`` does not load.
    """
    a, b = np.random.default_rng(0).standard_normal((2, _SIZE, _SIZE), np.float32).astype(np.float16)
    (found,) = open_session(GRAPH, 1, device=device).run(None, {"a": a, "b": b})
    exact = a.astype(np.float64) @ b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.abs(found - exact).max() / np.abs(exact).max())
