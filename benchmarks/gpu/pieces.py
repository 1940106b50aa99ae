"""Large files in folders of a limited size, and together again: for a machine that takes little at a time.

``python pieces.py split LIMIT_MIB TARGET FILE...`` writes TARGET/000, TARGET/001 and so on.
``python pieces.py join TARGET FOLDER...`` puts together what is in such folders, which come in order, in one
call or in several. Needs Python alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

INDEX = "index.json"
UNFINISHED = ".unfinished"
READ_BYTES = 1 << 20


def split(files: Sequence[Path], target: Path, limit_bytes: int) -> list[Path]:
    """Write the folders, whose parts take ``limit_bytes`` at most each, and return them in order.

    Raises:
        ValueError: the limit is not positive, or two files have one name.
    """
    if limit_bytes < 1:
        raise ValueError(f"the limit is {limit_bytes} bytes, and the least is 1")
    if len({file.name for file in files}) < len(files):
        raise ValueError("two files have one name")
    folders: list[list[dict[str, Any]]] = [[]]
    room = limit_bytes
    for file in files:
        size, whole, offset = file.stat().st_size, _digest(file), 0
        while offset < size or offset == size == 0:
            if room == 0:
                folders.append([])
                room = limit_bytes
            length = min(room, size - offset)
            name = f"{file.name}.{offset}"
            entry = {"part": name, "file": file.name, "offset": offset, "length": length}
            folder = target / f"{len(folders) - 1:03}"
            folder.mkdir(parents=True, exist_ok=True)
            entry["sha256"] = _copy(file, offset, length, folder / name)
            folders[-1].append(entry | {"size": size, "whole": whole})
            offset, room = offset + length, room - length
            if size == 0:
                break
    return [_index(target / f"{number:03}", entries) for number, entries in enumerate(folders) if entries]


def join(folders: Sequence[Path], target: Path) -> list[Path]:
    """Add the folders' parts to what is in ``target``, and return the files that became whole.

    A part that is there already is left out.

    Raises:
        ValueError: a part is missing or not what was split.
    """
    target.mkdir(parents=True, exist_ok=True)
    whole = []
    for folder in folders:
        for entry in json.loads((folder / INDEX).read_text(encoding="utf-8")):
            if (file := target / entry["file"]).exists():
                continue
            _append(folder / entry["part"], entry, growing := file.with_name(file.name + UNFINISHED))
            if growing.stat().st_size == entry["size"]:
                _check(growing, entry["whole"])
                growing.rename(file)
                whole.append(file)
    return whole


def _append(part: Path, entry: dict[str, Any], growing: Path) -> None:
    there = growing.stat().st_size if growing.exists() else 0
    if there >= entry["offset"] + entry["length"] and growing.exists():
        return
    if there != entry["offset"]:
        raise ValueError(
            f"{part} begins at byte {entry['offset']}, and {there} bytes are there: a folder before it is "
            "missing"
        )
    _check(part, entry["sha256"])
    with growing.open("ab") as file:
        file.write(part.read_bytes())


def _check(path: Path, wanted: str) -> None:
    if (found := _digest(path)) != wanted:
        raise ValueError(f"{path} has SHA-256 {found}, and should have {wanted}: bring it again")


def _index(folder: Path, entries: list[dict[str, Any]]) -> Path:
    (folder / INDEX).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return folder


def _copy(source: Path, offset: int, length: int, target: Path) -> str:
    """Write a part; its SHA-256."""
    state = hashlib.sha256()
    with target.open("wb") as file:
        for block in _blocks(source, offset, length):
            state.update(block)
            file.write(block)
    return state.hexdigest()


def _digest(path: Path) -> str:
    state = hashlib.sha256()
    for block in _blocks(path, 0, path.stat().st_size):
        state.update(block)
    return state.hexdigest()


def _blocks(path: Path, offset: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while length and (block := file.read(min(READ_BYTES, length))):
            length -= len(block)
            yield block


def main(arguments: Sequence[str]) -> int:
    """Print the folders or the files that were written; 1 and one line where it cannot be done."""
    try:
        match arguments:
            case ["split", limit, target, *files] if files:
                found = split([*map(Path, files)], Path(target), int(limit) << 20)
            case ["join", target, *folders] if folders:
                found = join([*map(Path, folders)], Path(target))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (ValueError, OSError) as fault:
        print(fault, file=sys.stderr)
        return 1
    print(*found, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
