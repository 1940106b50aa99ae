"""Records as a contestant's process writes them."""

from __future__ import annotations

from typing import Any


def request(times: list[float], **changes: Any) -> dict[str, Any]:
    """A whole request due at 0."""
    found = {"index": 0, "group": 0, "due_s": 0.0, "start_s": 0.0, "token_times_s": times, "error": None}
    return found | {"prompt_tokens": 5, "max_tokens": len(times)} | changes


def record(*requests: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run of the trace."""
    found = {
        "work": "trace",
        "requests": list(requests),
        "cpu_s": 1.5,
        "peak_bytes": 2_000_000,
        "wall_s": 9.0,
    }
    return found | {"versions": {"python": "3"}} | changes
