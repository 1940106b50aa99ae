"""Whether an exported model computes what the torch model computes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from llm_grpc.errors import ExportError
from llm_grpc.export.estimate import is_packed
from llm_grpc.export.load import load_model
from llm_grpc.export.progress import Progress
from llm_grpc.export.reference import reference_logits
from llm_grpc.export.source import Source
from llm_grpc.export.verify_drive import CHUNK_TOKENS, Trace, generate, prefill
from llm_grpc.export.verify_input import VerifyInput, verify_input
from llm_grpc.export.verify_measure import Comparison, perplexity
from llm_grpc.export.verify_report import (
    THRESHOLDS,
    Perplexity,
    Thresholds,
    Verification,
    faults,
    limits_of,
)
from llm_grpc.export.verify_runner import open_runner
from llm_grpc.export.widen import runnable
from llm_grpc.export.write import write_atomically, write_manifest
from llm_grpc.machine import available_memory_bytes
from llm_grpc.manifest import VERIFICATION, Manifest, file_entry, load_manifest

STAGES = ("running the exported model", "running the torch model")


@dataclass(frozen=True)
class VerifyOptions:
    """``num_tokens`` are generated after each prompt; ``text`` is one prompt more and has its perplexity."""

    num_tokens: int = 32
    text: Path | None = None
    allow_inexact: bool = False


def verify(model_dir: Path, source: Source, options: VerifyOptions, progress: Progress) -> Verification:
    """Run both models, write ``verification.json`` and its digest into the manifest, return what it says.

    A half-precision model runs in fp32 over its rounded weights, attention of lowering ``paged`` by its
    definition, and the report says so.
    The exported model runs first and is gone before the torch model is loaded: memory holds one at a time.
    A report outside the limits is written and returned like any other; what follows from it is the caller's.

    Raises:
        ExportError: the source cannot be loaded or has another vocabulary, or the text cannot be used.
        StartupError: the model directory cannot be loaded.
    """
    manifest = load_manifest(model_dir)
    if manifest.weights not in THRESHOLDS:
        raise ExportError(f"there are no thresholds for the weights {manifest.weights}")
    given = verify_input(model_dir, manifest, options.num_tokens, options.text)
    progress.stage(STAGES[0])
    with runnable(model_dir, manifest) as (directory, as_run):
        traces, exported = _run_exported(directory, as_run, given, progress)
    progress.stage(STAGES[1])
    comparison, reference = _run_reference(source, manifest, given, traces, progress)
    text = _perplexity(given, exported, reference) if given.windows else None
    report = _report(manifest, as_run, source, comparison, text, options)
    _write(model_dir, manifest, report)
    return report


def _run_exported(
    model_dir: Path, manifest: Manifest, given: VerifyInput, progress: Progress
) -> tuple[list[Trace], float]:
    """What the exported model generated, and its perplexity (1 where there is no text)."""
    size = sum(path.stat().st_size for path in model_dir.iterdir() if path.is_file())
    packs = is_packed(size, available_memory_bytes())
    num_slots = len(given.prompts)
    runner = open_runner(model_dir, manifest, num_slots, given.capacity, CHUNK_TOKENS, packs)
    traces = generate(runner, given.prompts, given.num_tokens, progress.part)
    return traces, perplexity(lambda ids: prefill(runner, ids), given.windows, progress.part)


def _run_reference(
    source: Source, manifest: Manifest, given: VerifyInput, traces: list[Trace], progress: Progress
) -> tuple[Comparison, float]:
    """The comparison with the torch model, and its perplexity."""
    model = load_model(source)
    if model.config.vocab_size != manifest.vocabulary_size:
        raise ExportError(
            f"{source.name} has a vocabulary of {model.config.vocab_size}, and the exported model one of "
            f"{manifest.vocabulary_size}: it is another model"
        )
    comparison = Comparison(tie=_limits(manifest).tie)
    for index, trace in enumerate(traces):
        comparison.add(trace, reference_logits(model, trace.inputs))
        progress.part(index + 1, len(traces))
    return comparison, perplexity(lambda ids: reference_logits(model, ids), given.windows, progress.part)


def _limits(manifest: Manifest) -> Thresholds:
    return limits_of(manifest.weights, manifest.kv_cache.dtype)


def _perplexity(given: VerifyInput, exported: float, reference: float) -> Perplexity:
    return Perplexity(
        text_sha256=given.text_sha256,
        tokens=sum(len(window) - 1 for window in given.windows),
        window_tokens=max(map(len, given.windows)),
        exported=exported,
        reference=reference,
    )


def _report(
    manifest: Manifest,
    as_run: Manifest,
    source: Source,
    comparison: Comparison,
    text: Perplexity | None,
    options: VerifyOptions,
) -> Verification:
    limits = _limits(manifest)
    outside = faults(comparison.logits(), comparison.greedy(), limits)
    return Verification(
        reference=source.recorded_name,
        weights=manifest.weights,
        computed_in=as_run.kv_cache.dtype,
        attention="definition" if manifest.lowering == "paged" else "kernel",
        passed=not outside,
        allowed_inexact=bool(outside) and options.allow_inexact,
        faults=outside,
        thresholds=limits,
        logits=comparison.logits(),
        greedy=comparison.greedy(),
        perplexity=text,
        files={name: entry.sha256 for name, entry in manifest.files.items()},
        versions={package: version(package) for package in ("torch", "transformers", "numpy")},
    )


def _write(model_dir: Path, manifest: Manifest, report: Verification) -> None:
    """The manifest names no report while the report is replaced: stopped in between, it is still right."""
    try:
        write_manifest(model_dir, manifest.model_copy(update={"verification": None}))
        write_atomically(model_dir / VERIFICATION, report.model_dump_json(indent=2) + "\n")
        digest = file_entry(model_dir / VERIFICATION).sha256
        write_manifest(model_dir, manifest.model_copy(update={"verification": digest}))
    except OSError as error:
        raise ExportError(f"cannot write {model_dir / VERIFICATION}: {error.strerror}") from error
