"""From a Hugging Face causal language model to a model directory."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_grpc.errors import ExportError
from llm_grpc.export.estimate import say_needs
from llm_grpc.export.job import GRAPH_PASSES, GraphPass, Job
from llm_grpc.export.progress import Progress, show_progress
from llm_grpc.export.recipe import Recipe
from llm_grpc.export.replace import replace_directory
from llm_grpc.export.source import Source, find_source, first_line
from llm_grpc.export.stages import Stage, stages_of
from llm_grpc.export.verify import STAGES as VERIFY_STAGES
from llm_grpc.export.verify import VerifyOptions, verify
from llm_grpc.export.verify_input import read_text
from llm_grpc.manifest import MANIFEST, load_manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DEFAULT = VerifyOptions()
_FP32 = Recipe()


def export(
    source: str,
    model_dir: Path,
    name: str = "",
    options: VerifyOptions = _DEFAULT,
    recipe: Recipe = _FP32,
    passes: tuple[GraphPass, ...] = GRAPH_PASSES,
) -> None:
    """Export ``source``, a directory or a hub id with safetensors weights, to ``model_dir``, and verify it.

    The directory is written beside its place and renamed at the end, so that an export that fails or is
    interrupted leaves nothing behind and an old directory stays whole until the new one is. Only a process
    that is killed leaves its work, in a directory that begins with a dot. No remote code is run.

    Args:
        source: a directory, else a hub id.
        model_dir: the directory to write; replaced if it is a model directory already.
        name: the model's name in requests; empty means the source's last path element.
        options: how the result is verified, and whether one outside the limits is kept.
        recipe: the format of the weights.
        passes: what is done to the graph after the trace.

    Raises:
        ExportError: the source cannot be loaded or exported, the result is not what torch computes, the disk
            is too small, or ``model_dir`` is something else.
    """
    name = _checked_name(source, name)
    with _one_line(source):
        _check_target(model_dir)
        if options.text:
            read_text(options.text)
        found = find_source(source)
        if recipe.calibrate:
            read_text(recipe.calibrate)
        stages = stages_of(recipe)
        with show_progress(len(stages) + len(VERIFY_STAGES)) as progress:
            progress.say(say_needs(found, model_dir, recipe))
            model_dir.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{model_dir.name}.", dir=model_dir.parent) as scratch:
                staging = Path(scratch) / "model"
                staging.mkdir()
                _write(Job(found, name, staging, recipe, passes), stages, options, progress)
                replace_directory(model_dir, staging, Path(scratch) / "old")
            progress.say(f"wrote {model_dir}")


def verify_directory(model_dir: Path, against: str = "", options: VerifyOptions = _DEFAULT) -> None:
    """Verify a model directory against the model ``against``, the hub id in its manifest where that is empty.

    Raises:
        ExportError: there is no such model, or the exported one is outside the limits.
        StartupError: the model directory cannot be loaded.
    """
    recorded = load_manifest(model_dir).source
    if not against and "/" not in recorded:
        known = f" (it was exported from a directory named {recorded})" if recorded else ""
        raise ExportError(
            f"{model_dir} does not say where its source is{known}: pass --against DIRECTORY-OR-ID"
        )
    with _one_line(against or recorded):
        source = find_source(against or recorded)
        with show_progress(len(VERIFY_STAGES)) as progress:
            _verify(model_dir, source, options, progress)


def _write(job: Job, stages: list[Stage], options: VerifyOptions, progress: Progress) -> None:
    for title, stage in stages:
        progress.stage(title)
        stage(job, progress)
    _verify(job.directory, job.source, options, progress)


def _verify(model_dir: Path, source: Source, options: VerifyOptions, progress: Progress) -> None:
    report = verify(model_dir, source, options, progress)
    progress.say(report.summary())
    if report.passed:
        return
    outside = "; ".join(report.faults)
    if not options.allow_inexact:
        raise ExportError(
            f"the exported model is not what torch computes: {outside} (--allow-inexact keeps it)"
        )
    progress.say(f"kept although it is not what torch computes: {outside}")


def _checked_name(source: str, name: str) -> str:
    name = name or Path(source).resolve().name
    if not _NAME.fullmatch(name):
        raise ExportError(f"the name {name!r} must match {_NAME.pattern}: pass another one as --name")
    return name


def _check_target(model_dir: Path) -> None:
    if not model_dir.exists():
        return
    if not model_dir.is_dir() or (any(model_dir.iterdir()) and not (model_dir / MANIFEST).exists()):
        raise ExportError(f"{model_dir} exists and is not a model directory: choose another or empty it")


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    """What the system refuses, as an ExportError."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise ExportError(f"{source}: no space is left on the disk; nothing was kept") from error
        raise ExportError(f"{source}: {first_line(error)}") from error
    except MemoryError as error:
        raise ExportError(f"{source}: there is not enough memory") from error
