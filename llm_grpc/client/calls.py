"""What goes with every call of a client: a deadline and metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

MetadataItems = tuple[tuple[str, str | bytes], ...]


class CallArguments(TypedDict):
    """Keyword arguments of a call on a stub."""

    timeout: float
    metadata: MetadataItems


class CallDefaults:
    """A client's deadline and metadata."""

    def __init__(self, timeout_s: float, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._timeout_s = timeout_s
        self._metadata = tuple(metadata)

    def __call__(self, timeout_s: float | None) -> CallArguments:
        """Return the arguments of one call; `timeout_s` None is the client's own."""
        return {
            "timeout": self._timeout_s if timeout_s is None else timeout_s,
            "metadata": self._metadata,
        }
