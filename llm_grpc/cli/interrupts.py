"""Commands that work for long and clean up when they are stopped."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code: 128 and the number of SIGINT, as shells have it."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM stop the command as Ctrl-C does, and log plain lines."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("llm_grpc").setLevel(logging.INFO)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
