"""Putting a finished directory in its place."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux's renameat2 and RENAME_SWAP of macOS's renamex_np, both 2."""


def replace_directory(target: Path, finished: Path, old: Path) -> None:
    """Move ``finished`` to ``target``; what was there is at ``finished`` or ``old`` afterwards, or nowhere.

    All three are on one file system. Where the system can exchange two names, there is no moment without a
    whole directory at ``target``, whatever stops the process. Elsewhere the old directory moves away first
    and comes back if anything but the end of the process stops the second rename.
    """
    if not target.exists() or not any(target.iterdir()):
        finished.rename(target)
    elif not _exchange(target, finished):
        rename_twice(target, finished, old)


def rename_twice(target: Path, finished: Path, old: Path) -> None:
    """``target`` to ``old``, ``finished`` to ``target``; back again if the second does not happen."""
    try:
        target.rename(old)
        finished.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Whether the system exchanged the two names."""
    names = os.fsencode(one), os.fsencode(other)
    libc = ctypes.CDLL(None)
    try:
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*names, _EXCHANGE) == 0)
        return bool(libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)
    except AttributeError:  # a C library without it
        return False
