from __future__ import annotations

import logging
from pathlib import Path

from llm_grpc.cli.extras import needs_extra


def export(source: str, model_dir: Path, /, *, name: str = "") -> int:
    """Write a model directory.

    Parameters
    ----------
    source
        Directory of the model, or its id on the hub.
    model_dir
        Directory to write; one that holds an exported model is replaced.
    name
        Name that requests use; empty is the last part of SOURCE.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with needs_extra("install llm-grpc[export]"):
        from llm_grpc.export.command import export as run_export  # noqa: PLC0415 - imports torch

        run_export(source, model_dir, name)
    return 0
