"""Files that travel in pieces are the same files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.gpu import pieces
from benchmarks.gpu.pieces import INDEX, join, main, split


def written(directory: Path, contents: list[bytes]) -> list[Path]:
    files = [directory / f"file{number}" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    st.integers(1, 50),
    st.integers(1, 9),
    st.booleans(),
)
def test_what_was_split_is_joined(contents: list[bytes], limit: int, at_once: int, again: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        files = written(Path(scratch), contents)
        folders = split(files, Path(scratch) / "pieces", limit)
        for folder in folders:
            assert sum(f.stat().st_size for f in folder.iterdir() if f.name != INDEX) <= limit
        assert len(folders) <= sum(map(len, contents)) // limit + 1
        found: list[Path] = []
        for start in range(0, len(folders), at_once):
            found += join(folders[start : start + at_once], Path(scratch) / "joined")
            if again:
                assert join(folders[start : start + at_once], Path(scratch) / "joined") == []
        assert [file.name for file in found] == [file.name for file in files]
        assert [file.read_bytes() for file in found] == contents
        assert sorted((Path(scratch) / "joined").iterdir()) == found


def test_a_part_that_changed_is_named(tmp_path: Path) -> None:
    folders = split(written(tmp_path, [b"abcdef"]), tmp_path / "pieces", 4)
    (folders[1] / "file0.4").write_bytes(b"eF")
    with pytest.raises(ValueError, match=r"file0\.4 has SHA-256 .*: bring it again"):
        join(folders, tmp_path / "joined")
    (folders[1] / "file0.4").write_bytes(b"ef")
    assert [f.read_bytes() for f in join(folders, tmp_path / "joined")] == [b"abcdef"]


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    folders = split(written(tmp_path, [b"abcdef"]), tmp_path / "pieces", 2)
    join(folders[:1], tmp_path / "joined")
    with pytest.raises(ValueError, match="begins at byte 4, and 2 bytes are there: a folder before it"):
        join(folders[2:], tmp_path / "joined")


def test_two_files_of_one_name_and_no_limit_are_refused(tmp_path: Path) -> None:
    (file,) = written(tmp_path, [b"a"])
    with pytest.raises(ValueError, match="two files have one name"):
        split([file, file], tmp_path / "pieces", 1)
    with pytest.raises(ValueError, match="the limit is 0 bytes, and the least is 1"):
        split([file], tmp_path / "pieces", 0)


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs alone, as a file that was brought somewhere."""
    program = tmp_path / "program.py"
    program.write_bytes(Path(pieces.__file__).read_bytes())
    (file,) = written(tmp_path, [bytes(5 << 19)])
    split_command = [sys.executable, "-I", str(program), "split", "1", str(tmp_path / "pieces"), str(file)]
    done = subprocess.run(split_command, capture_output=True, text=True, check=True)
    folders = done.stdout.split()
    assert [Path(folder).name for folder in folders] == ["000", "001", "002"]
    assert main(["join", str(tmp_path / "joined"), *folders]) == 0
    assert (tmp_path / "joined/file0").read_bytes() == file.read_bytes()
    assert main(["join", str(tmp_path / "other"), folders[1]]) == 1
    assert main(["split"]) == 2
    assert "a folder before it is missing" in capsys.readouterr().err
