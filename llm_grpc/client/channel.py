"""What both clients hand to gRPC: channel options and the shipped service config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from llm_grpc import __version__

ChannelOptions = Sequence[tuple[str, Any]]
Metadata = Sequence[tuple[str, str | bytes]]

DEFAULT_ADDRESS = "localhost:50051"

DEFAULT_TIMEOUT_S = 60.0
"""Every call has a deadline. The server stops working for a call whose deadline has passed."""

MAX_RECEIVE_BYTES = 64 * 1024 * 1024
"""A reply is bounded by the server's token limits, so gRPC's 4 MiB guard only gets in the way here."""


def service_config() -> str:
    """Return the service config that ships with the client, as JSON.

    round_robin spreads the calls over all addresses of a name (a headless Kubernetes Service) instead of
    pinning the first. UNAVAILABLE and RESOURCE_EXHAUSTED are retried, up to 4 attempts (the core allows 5)
    and only before a stream's first message; a server's grpc-retry-pushback-ms replaces the backoff. It does
    not set waitForReady: with it a wrong address or a server that is down hangs until the deadline, where
    now the call fails within seconds and says why.
    """
    return resources.files("llm_grpc.client").joinpath("service_config.json").read_text(encoding="utf-8")


def channel_options(options: Iterable[tuple[str, Any]] = ()) -> list[tuple[str, Any]]:
    """Return the options of a channel: ours, each of which one of the same name in `options` replaces."""
    ours = {
        "grpc.service_config": service_config(),
        "grpc.primary_user_agent": f"llm-grpc-client/{__version__}",
        "grpc.max_receive_message_length": MAX_RECEIVE_BYTES,
        # A peer that vanished (its node lost power) is noticed after 40 s, not after the kernel's 15 minutes.
        # Pings go out during calls alone, for servers close connections that ping while idle.
        "grpc.keepalive_time_ms": 30_000,
        "grpc.keepalive_timeout_ms": 10_000,
    }
    return list((ours | dict(options)).items())
