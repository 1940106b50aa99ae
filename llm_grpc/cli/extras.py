"""Commands whose packages are an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llm_grpc.errors import LLMGrpcError


@contextmanager
def needs_extra(install: str) -> Iterator[None]:
    """Say what to install where a package is missing. A missing module of our own stays what it is, a bug."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "llm_grpc":
            raise
        raise LLMGrpcError(f"{error.name} is not installed: {install}") from error
