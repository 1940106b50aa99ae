"""Stop strings against a reference that has the whole text and looks at it character by character."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.text.stop_strings import StopStringMatcher

# Few letters, so that stop strings overlap, contain and begin one another all the time.
TEXTS = st.text("ab", max_size=30) | st.text("abé😀", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5) | st.text("bé😀", min_size=1, max_size=4), max_size=4)


def reference(text: str, stops: tuple[str, ...], num_early: int = 0) -> tuple[str, str | None]:
    """What may be shown of ``text``, and the stop string that ended it: the first to be complete after the
    characters that come too early for it.
    """
    for end in range(num_early + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def cut(text: str, cuts: list[int]) -> list[str]:
    """``text`` in pieces, some of them empty."""
    edges = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def run(pieces: list[str], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    matcher, out = StopStringMatcher(stops), list[str]()
    for piece in pieces:
        stop = matcher.push(piece, out)
        if stop is not None:
            return out, stop
    matcher.flush(out)
    return out, None


@settings(max_examples=400)
@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=12))
def test_any_cut_gives_what_the_whole_text_gives(text: str, stops: list[str], cuts: list[int]) -> None:
    out, stop = run(cut(text, cuts), tuple(stops))
    assert ("".join(out), stop) == reference(text, tuple(stops))


@settings(max_examples=300)
@given(text=TEXTS, stops=STOPS, future=TEXTS)
def test_what_is_shown_stays_right_whatever_comes(text: str, stops: list[str], future: str) -> None:
    """Nothing shown is ever part of a stop string, and nothing is held back that could not become one."""
    matcher, out = StopStringMatcher(tuple(stops)), list[str]()
    for character in text:
        if matcher.push(character, out) is not None:
            return
    shown = "".join(out)
    held = text[len(shown) :]
    assert reference(text + future, tuple(stops))[0].startswith(shown)
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@settings(max_examples=400)
@given(
    text=TEXTS,
    stops=STOPS,
    cuts=st.lists(st.integers(0, 30), max_size=12),
    num_early=st.integers(0, 12),
    includes_stop=st.booleans(),
)
def test_a_stop_string_that_ends_too_early_is_text(
    text: str, stops: list[str], cuts: list[int], num_early: int, includes_stop: bool
) -> None:
    pieces = cut(text, cuts)
    early_text = "".join(pieces[:num_early])
    shown, stop = reference(text, tuple(stops), len(early_text))
    matcher, out = StopStringMatcher(tuple(stops), includes_stop=includes_stop), list[str]()
    found = None
    for at, piece in enumerate(pieces):
        found = matcher.push(piece, out, is_early=at < num_early)
        if found is not None:
            break
        assert shown.startswith("".join(out)), "nothing of a stop string is let out"
        held = "".join(pieces[: at + 1])[len("".join(out)) :]
        assert held == "" or any(each.startswith(held) and each != held for each in stops)
    else:
        matcher.flush(out)
    assert found == stop
    assert "".join(out) == shown + (stop or "") * includes_stop


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "stop"),
    [
        (["Hello", " wor", "ld"], (), ["Hello", " wor", "ld"], None),
        (["one\n", "\ntwo"], ("\n\n",), ["one", ""], "\n\n"),
        (["one\n", "two"], ("\n\n",), ["one", "\ntwo"], None),
        (["one\n\n"], ("\n\n", "\n"), ["one"], "\n"),
        (["ab"], ("abc", "b"), ["a"], "b"),
        (["abc"], ("bc", "abc"), [""], "abc"),
        (["a<|e", "nd", "|>b"], ("<|end|>",), ["a", "", ""], "<|end|>"),
        (["<|", "end"], ("<|end|>",), ["", ""], None),
    ],
)
def test_what_is_shown_when(
    pieces: list[str], stops: tuple[str, ...], shown: list[str], stop: str | None
) -> None:
    matcher, outs, found = StopStringMatcher(stops), [], None
    for piece in pieces:
        out: list[str] = []
        found = matcher.push(piece, out)
        outs.append("".join(out))
    assert (outs, found) == (shown, stop)


def test_a_held_beginning_is_let_out_at_the_end_once() -> None:
    matcher, out = StopStringMatcher(("STOP",)), list[str]()
    assert matcher.push("full ST", out) is None
    assert out == ["full "]
    matcher.flush(out)
    matcher.flush(out)
    assert "".join(out) == "full ST"
