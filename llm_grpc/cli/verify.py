from __future__ import annotations

from pathlib import Path

from llm_grpc.cli.export import INSTALL
from llm_grpc.cli.extras import needs_extra
from llm_grpc.cli.interrupts import INTERRUPTED, interruptible
from llm_grpc.cli.messages import fail


def verify(model_dir: Path, /, *, against: str = "", text: Path | None = None, tokens: int = 32) -> int:
    """Compare a model directory with the torch model that it was exported from.

    Parameters
    ----------
    model_dir
        Directory to verify; its verification.json and manifest are written again.
    against
        Directory of the torch model, or its id on the hub; empty is the id in the manifest.
    text
        UTF-8 text on which the perplexity of both models is compared.
    tokens
        Tokens that are generated after each prompt.
    """
    with interruptible():
        try:
            with needs_extra(INSTALL):
                from llm_grpc.export.command import verify_directory  # noqa: PLC0415 - imports torch
                from llm_grpc.export.verify import VerifyOptions  # noqa: PLC0415 - imports torch

                verify_directory(model_dir, against, VerifyOptions(tokens, text))
        except KeyboardInterrupt:
            return fail("interrupted", INTERRUPTED)
    return 0
