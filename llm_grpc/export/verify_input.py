"""What both models of a verification are given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from llm_grpc.errors import ExportError
from llm_grpc.manifest import Manifest

PROMPT_TOKENS = (5, 17, 48, 113)
"""Lengths of the generated prompts: less than a chunk, one chunk exactly, several."""

WINDOW_TOKENS = 256


@dataclass(frozen=True)
class VerifyInput:
    """Prompts of which each gets ``num_tokens`` tokens, and the windows of the text, if there is one."""

    prompts: list[list[int]]
    num_tokens: int
    windows: list[list[int]]
    text_sha256: str

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence."""
        longest = max(map(len, self.windows), default=0)
        return max(self.num_tokens + max(map(len, self.prompts)), longest + 1)


def verify_input(model_dir: Path, manifest: Manifest, num_tokens: int, text: Path | None) -> VerifyInput:
    """Ids that are the same for every model of this vocabulary and context; the text's beginning after them.

    Raises:
        ExportError: the text cannot be read or is too short, or the context holds no prompt of one token.
    """
    longest = manifest.context_tokens - num_tokens
    if num_tokens < 1 or longest < 1:
        limit = manifest.context_tokens - 1
        raise ExportError(f"tokens is {num_tokens}, and the limits are 1 and {limit}, the context less one")
    random = np.random.Generator(np.random.PCG64(0))
    lengths = [min(length, longest) for length in PROMPT_TOKENS]
    prompts = [random.integers(manifest.vocabulary_size, size=length).tolist() for length in lengths]
    if text is None:
        return VerifyInput(prompts, num_tokens, [], "")
    content = read_text(text)
    ids = encode_text(model_dir / manifest.tokenizer, text, content)
    # The runner wants a position behind a chunk, for the row of an idle decode half.
    size = min(WINDOW_TOKENS, manifest.context_tokens - 1)
    return VerifyInput(
        prompts=[*prompts, ids[: lengths[-1]]],
        num_tokens=num_tokens,
        windows=cut_windows(ids, size),
        text_sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


def read_text(path: Path) -> str:
    """The whole file.

    Raises:
        ExportError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot read the text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"the text {path} is not UTF-8: {error.reason}") from error


def encode_text(tokenizer: Path, path: Path, text: str, least: int = 2) -> list[int]:
    """The ids of ``text``, the content of ``path``.

    Raises:
        ExportError: there are fewer than ``least``.
    """
    raw = Tokenizer.from_file(str(tokenizer))
    raw.no_truncation()
    raw.no_padding()
    ids: list[int] = raw.encode(text).ids
    if len(ids) < least:
        raise ExportError(f"the text {path} has {len(ids)} tokens, and the least is {least}")
    return ids


def cut_windows(ids: list[int], size: int) -> list[list[int]]:
    """``ids`` in pieces of ``size`` tokens; the last may be shorter, but has two at least."""
    windows = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1]
