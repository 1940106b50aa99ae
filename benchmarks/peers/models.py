"""The checkpoint in each contestant's format, converted once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchmarks.peers.checkpoint import make_checkpoint
from benchmarks.peers.contestants import HERE, OURS, Contestant
from benchmarks.peers.environments import REPOSITORY, converter_of, digest, process_environment


def checkpoint_of(cache: Path) -> Path:
    """The checkpoint, made where it is missing."""
    directory = cache / "checkpoint"
    if not (directory / "model.safetensors").exists():
        partial = directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_checkpoint(partial)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    return directory


def model_of(contestant: Contestant, cache: Path, threads: int) -> Path:
    """The contestant's model, converted where it is missing or where what converts it has changed.

    Raises:
        subprocess.CalledProcessError: the conversion failed.
    """
    checkpoint = checkpoint_of(cache)
    if not contestant.convert:
        return checkpoint
    folder, _, wanted = contestant.convert.partition(":")
    directory = cache / "models" / f"{folder}-{wanted}-{digest(*_converters(folder))}"
    if not directory.exists():
        partial = directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        python = converter_of(folder, cache)
        command = [str(python), str(HERE / folder / "convert.py"), str(checkpoint), str(partial), wanted]
        subprocess.run(command, check=True, env=process_environment(threads))
        partial.rename(directory)
    return directory


def _converters(folder: str) -> list[Path]:
    """The files that decide what a conversion writes."""
    files = [HERE / "checkpoint.py", HERE / folder / "convert.py"]
    if folder == OURS:
        return files + sorted((REPOSITORY / "llm_grpc" / "export").rglob("*.py"))
    return files + sorted((HERE / folder).glob("*.txt"))
