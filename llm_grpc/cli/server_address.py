"""Where the client commands find the server when `--address` does not say."""

from __future__ import annotations

import os

from cyclopts import App, ArgumentCollection, Token

VARIABLE = "LLM_GRPC_ADDRESS"

LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "localhost"}  # noqa: S104 - read, not bound
"""To listen on every address is not an address to call."""


def server_address(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Let `--address` fall back to LLM_GRPC_ADDRESS: a probe in the server's container needs no flag."""
    address = arguments.get("--address", None)
    value = os.environ.get(VARIABLE)
    if address is not None and not address.tokens and value:
        address.append(Token(keyword=VARIABLE, value=value, source="env"))


def target(address: str) -> str:
    """Return the address to call for one to listen on: a wildcard host becomes loopback."""
    host, colon, port = address.rpartition(":")
    return f"{LOOPBACK.get(host, host)}{colon}{port}" if colon else address
