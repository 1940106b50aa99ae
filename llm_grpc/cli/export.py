from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from llm_grpc.cli.extras import needs_extra
from llm_grpc.cli.interrupts import INTERRUPTED, interruptible
from llm_grpc.cli.messages import fail

INSTALL = "install llm-grpc[export,cpu]"


def export(
    source: str,
    model_dir: Path,
    /,
    *,
    name: str = "",
    text: Path | None = None,
    tokens: int = 32,
    allow_inexact: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write a model directory.

    Parameters
    ----------
    source
        Directory of the model, or its id on the hub.
    model_dir
        Directory to write; one that holds an exported model is replaced.
    name
        Name that requests use; empty is the last part of SOURCE.
    text
        UTF-8 text on which the perplexity of both models is compared.
    tokens
        Tokens that are generated after each prompt of the verification.
    allow_inexact
        Keep a model that is outside the limits of its weight format, and record that.
    """
    with interruptible():
        try:
            with needs_extra(INSTALL):
                from llm_grpc.export.command import export as run_export  # noqa: PLC0415 - imports torch
                from llm_grpc.export.verify import VerifyOptions  # noqa: PLC0415 - imports torch

                run_export(source, model_dir, name, VerifyOptions(tokens, text, allow_inexact))
        except KeyboardInterrupt:
            return fail("interrupted; nothing was written", INTERRUPTED)
    return 0
