"""A verification passes for an exact export, and says what is wrong with another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llm_grpc.errors import ExportError
from llm_grpc.export.command import export, verify_directory
from llm_grpc.export.job import GRAPH_PASSES
from llm_grpc.export.passes.weights import array_of
from llm_grpc.export.verify import VerifyOptions
from llm_grpc.export.verify_drive import CHUNK_TOKENS, Trace
from llm_grpc.export.verify_input import PROMPT_TOKENS
from llm_grpc.export.verify_measure import Comparison, perplexity
from llm_grpc.export.verify_report import THRESHOLDS, Verification, faults
from llm_grpc.manifest import VERIFICATION, check_digests, file_entry, load_manifest
from tests.export.random_model import save_random_model

TEXT = "A text for perplexity. " * 20
FEW = VerifyOptions(num_tokens=4)


def report(model_dir: Path) -> Verification:
    return Verification.model_validate_json((model_dir / VERIFICATION).read_text())


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def perturb(model: ir.Model) -> None:
    """A pass with a bug: the largest matrix is off by a percent."""
    value = max(model.graph.initializers.values(), key=lambda v: array_of(v).size)
    value.const_value = ir.tensor(array_of(value).astype(np.float32) * np.float32(1.01), name=value.name)


def test_an_export_is_verified_and_says_so(model_dir: Path) -> None:
    manifest, found = load_manifest(model_dir), report(model_dir)
    assert manifest.verification == file_entry(model_dir / VERIFICATION).sha256
    assert manifest.source == found.reference == "random-llama"
    assert found.passed
    assert found.faults == ()
    assert found.files == {name: entry.sha256 for name, entry in manifest.files.items()}
    assert found.greedy.tokens == len(PROMPT_TOKENS) * 32
    assert found.greedy.equal + found.greedy.ties == found.greedy.tokens
    # The context of 128 leaves the longest prompt 96 of its tokens.
    assert found.logits.rows == sum(min(n, 96) + 31 for n in PROMPT_TOKENS)
    assert found.logits.relative_error <= 1e-4 == THRESHOLDS["fp32"].relative_error
    assert "/" not in (model_dir / "manifest.json").read_text().replace("</", "")


def test_the_prompts_are_shorter_than_a_chunk_one_chunk_and_several() -> None:
    assert min(PROMPT_TOKENS) < CHUNK_TOKENS < max(PROMPT_TOKENS)
    assert CHUNK_TOKENS in PROMPT_TOKENS


def test_a_text_adds_a_prompt_and_its_perplexity(copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    verify_directory(copy, str(checkpoint), VerifyOptions(num_tokens=4, text=text))
    found = report(copy)
    assert found.greedy.prompts == len(PROMPT_TOKENS) + 1
    assert found.perplexity
    # Bytes are tokens; each window of 127 predicts all but its first.
    assert found.perplexity.tokens == len(TEXT) - -(-len(TEXT) // 127)
    assert found.perplexity.exported == pytest.approx(found.perplexity.reference, rel=1e-4)
    check_digests(copy, load_manifest(copy))


def test_another_model_is_outside_the_limits_and_the_report_says_so(copy: Path, tmp_path: Path) -> None:
    other = save_random_model(tmp_path / "other", rope_theta=500.0)
    with pytest.raises(ExportError, match="not what torch computes: relative logit error") as error:
        verify_directory(copy, str(other), FEW)
    assert "\n" not in str(error.value)
    assert not report(copy).passed
    assert report(copy).reference == "other"
    assert load_manifest(copy).verification == file_entry(copy / VERIFICATION).sha256


def test_a_model_of_another_vocabulary_is_refused(copy: Path, tmp_path: Path) -> None:
    other = save_random_model(tmp_path / "other", vocab_size=300)
    before = (copy / VERIFICATION).read_bytes()
    with pytest.raises(ExportError, match="vocabulary of 300"):
        verify_directory(copy, str(other), FEW)
    assert (copy / VERIFICATION).read_bytes() == before


def test_without_a_source_it_is_asked_for(copy: Path) -> None:
    with pytest.raises(ExportError, match=r"exported from a directory named random-llama.*pass --against"):
        verify_directory(copy)


def test_an_inexact_export_is_refused_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--allow-inexact"):
        export(str(checkpoint), tmp_path / "out", options=FEW, passes=(*GRAPH_PASSES, perturb))
    assert list(tmp_path.iterdir()) == []


def test_an_inexact_export_may_be_kept_and_is_marked(checkpoint: Path, tmp_path: Path) -> None:
    options = VerifyOptions(num_tokens=4, allow_inexact=True)
    export(str(checkpoint), tmp_path / "out", options=options, passes=(*GRAPH_PASSES, perturb))
    found = json.loads((tmp_path / "out" / VERIFICATION).read_text())
    assert (found["passed"], found["allowed_inexact"]) == (False, True)
    assert found["faults"]


@pytest.mark.parametrize("num_tokens", [0, 128])
def test_more_tokens_than_the_context_are_refused(copy: Path, checkpoint: Path, num_tokens: int) -> None:
    with pytest.raises(ExportError, match=f"tokens is {num_tokens}, and the limits are 1 and 127"):
        verify_directory(copy, str(checkpoint), VerifyOptions(num_tokens=num_tokens))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"", "has 0 tokens"), (b"\xff\xfe", "is not UTF-8")],
)
def test_a_text_that_cannot_be_used(
    copy: Path, checkpoint: Path, tmp_path: Path, content: bytes | None, says: str
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(ExportError, match=says):
        verify_directory(copy, str(checkpoint), VerifyOptions(text=text))


def row(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def compare(found: np.ndarray, wanted: np.ndarray) -> Comparison:
    comparison = Comparison(tie=1e-4)
    comparison.add(Trace([0], [int(found.argmax())], [found]), wanted[None])
    return comparison


def test_a_tie_is_counted_and_a_difference_is_not() -> None:
    tie = compare(row(1.0, 1.00001, 0), row(1.00001, 1.0, 0)).greedy()
    assert (tie.equal, tie.ties, tie.agreement) == (0, 1, 1.0)
    different = compare(row(1.0, 1.1, 0), row(1.1, 1.0, 0)).greedy()
    assert (different.equal, different.ties, different.agreement) == (0, 0, 0.0)


def test_the_divergence_is_that_of_the_distributions() -> None:
    found = compare(np.log(row(0.25, 0.75)), np.log(row(0.5, 0.5))).logits()
    assert found.mean_kl_nats == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)


def test_numbers_that_are_not_finite_are_outside_every_limit() -> None:
    comparison = compare(row(np.nan, 1.0), row(0.5, 1.0))
    for limits in THRESHOLDS.values():
        assert faults(comparison.logits(), comparison.greedy(), limits)


def test_the_perplexity_of_equal_logits_is_the_vocabulary() -> None:
    seen: list[tuple[int, int]] = []
    found = perplexity(
        lambda ids: np.zeros((len(ids), 7), np.float32), [[1, 2, 3], [4, 5]], lambda *p: seen.append(p)
    )
    assert found == pytest.approx(7)
    assert seen == [(1, 2), (2, 2)]
