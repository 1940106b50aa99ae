"""A directory or a file is replaced whole, whatever happens meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llm_grpc.export.replace import rename_twice, replace_directory
from llm_grpc.export.write import write_atomically


def directory(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def content(path: Path) -> str:
    return (path / "file").read_text()


def test_a_new_directory_is_moved(tmp_path: Path) -> None:
    replace_directory(tmp_path / "target", directory(tmp_path / "finished", "new"), tmp_path / "old")
    assert content(tmp_path / "target") == "new"
    assert not (tmp_path / "finished").exists()


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    replace_directory(tmp_path / "target", directory(tmp_path / "finished", "new"), tmp_path / "old")
    assert content(tmp_path / "target") == "new"


@pytest.mark.parametrize("replace", [replace_directory, rename_twice])
def test_an_older_directory_is_replaced(tmp_path: Path, replace: object) -> None:
    target, finished = directory(tmp_path / "target", "old"), directory(tmp_path / "finished", "new")
    assert callable(replace)
    replace(target, finished, tmp_path / "old")
    assert content(target) == "new"


def test_the_older_directory_comes_back_if_there_is_no_new_one(tmp_path: Path) -> None:
    target = directory(tmp_path / "target", "old")
    with pytest.raises(FileNotFoundError):
        rename_twice(target, tmp_path / "finished", tmp_path / "old")
    assert content(target) == "old"


INTERRUPT_THE_SECOND_RENAME = """
import os, signal, sys
from pathlib import Path
from llm_grpc.export.replace import rename_twice

renames = []

def interrupt(event, args):
    if event == "os.rename":
        renames.append(args)
        if len(renames) == 2:
            os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
try:
    rename_twice(*map(Path, sys.argv[1:]))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_at_the_second_rename_leaves_a_whole_directory(tmp_path: Path) -> None:
    target, finished = directory(tmp_path / "target", "old"), directory(tmp_path / "finished", "new")
    arguments = [str(target), str(finished), str(tmp_path / "old")]
    command = [sys.executable, "-c", INTERRUPT_THE_SECOND_RENAME, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout == "interrupted\n"
    # The signal is handled before the rename or after it: either way one whole directory is in place.
    assert content(target) in {"old", "new"}


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
