"""What is told back of one request, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llm_grpc.metrics import Timing
from llm_grpc.sampling_params import FinishReason


class TopToken(NamedTuple):
    """A token that could have been, the logarithm of its probability, and its bytes where they are asked
    for.
    """

    id: int
    logprob: float
    text: bytes = b""


class TextToken(NamedTuple):
    """One token of a text or a prompt.

    ``logprob`` and ``top`` are there where the request asks for them. ``text`` is what the token gave the
    text, ``text_offset`` the bytes that those before it gave.
    """

    id: int
    logprob: float | None = None
    top: tuple[TopToken, ...] = ()
    text: bytes = b""
    text_offset: int = 0


class PromptInfo(NamedTuple):
    """What a request asks to be told about its prompt."""

    text: str = ""
    tokens: tuple[TextToken, ...] = ()
    truncated_tokens: int = 0


class TextDelta(NamedTuple):
    """What came since the previous delta of the sequence ``index``; ``tokens`` where the request asks.

    ``prompt_info`` is set on the first delta of all where the request asks for it. The fields from
    ``finish_reason`` on are set on the last one of the sequence alone.
    """

    text: str
    index: int = 0  # type: ignore[assignment]  # a number hides a method of tuples that nobody calls
    tokens: tuple[TextToken, ...] = ()
    prompt_info: PromptInfo | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    stop_string: str | None = None
    stop_token_id: int | None = None
    seed: int = 0
    timing: Timing | None = None
    adapter_digest: str = ""

    @property
    def says_something(self) -> bool:
        """Whether a reader would miss it."""
        return bool(self.text or self.tokens or self.finish_reason or self.prompt_info)


def joined(deltas: Sequence[TextDelta]) -> list[TextDelta]:
    """The whole answers by index: the last delta of each with the text and the tokens of all of its own."""
    by_index: dict[int, list[TextDelta]] = {}
    for delta in deltas:
        by_index.setdefault(delta.index, []).append(delta)
    return [_joined(by_index[index]) for index in sorted(by_index)]


def _joined(deltas: Sequence[TextDelta]) -> TextDelta:
    return deltas[-1]._replace(
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        prompt_info=deltas[0].prompt_info,
    )
