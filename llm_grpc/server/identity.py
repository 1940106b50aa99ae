"""Who calls. Anonymous by default; what authenticates is an argument of the server."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller that was told apart; ``name`` goes into logs and quotas."""

    name: str


ANONYMOUS = Identity("anonymous")

current_identity: ContextVar[Identity] = ContextVar("current_identity", default=ANONYMOUS)
"""The caller of the RPC that is being handled."""


class Authenticator(Protocol):
    """Tells callers apart by the metadata of their calls and their peer."""

    async def authenticate(self, metadata: Metadata, peer: str) -> Identity:
        """The identity of the caller; raises a ``RequestError`` where the call must not go on."""
        ...


class AnonymousAuthenticator:
    """Lets everybody in under one name."""

    async def authenticate(self, metadata: Metadata, peer: str) -> Identity:
        """``ANONYMOUS``."""
        return ANONYMOUS
