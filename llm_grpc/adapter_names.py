"""Names of adapters, and where the configuration says that they are."""

from __future__ import annotations

import re
from pathlib import Path

ADAPTER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)


def parse_adapters(text: str) -> dict[str, Path]:
    """The directories of ``NAME=DIRECTORY,…``, by name.

    Raises:
        ValueError: it is not of that form; the message says how.
    """
    found: dict[str, Path] = {}
    for entry in filter(None, text.split(",")):
        name, _, directory = entry.partition("=")
        if not ADAPTER_NAME.fullmatch(name) or not directory:
            raise ValueError(
                f"should be NAME=DIRECTORY and commas between them, not {entry!r}; a name is "
                f"{ADAPTER_NAME.pattern}"
            )
        if name in found:
            raise ValueError(f"names {name} twice")
        found[name] = Path(directory)
    return found
