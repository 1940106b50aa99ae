"""Text that comes token by token is the text of all the tokens."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_grpc.text.detokenizer import Detokenizer
from llm_grpc.text.tokenizer import TextTokenizer
from tests.unit.small_tokenizers import BOS, EOS, byte_fallback, byte_level, decode, metaspace, token_id

REPLACEMENT = "\ufffd"
BYTE_LEVEL_IDS = st.lists(st.integers(0, byte_level().raw.get_vocab_size() - 1), max_size=40)
RICH = st.sampled_from(
    ["😀", "👩‍👩‍👧", "🇫🇷", "👍🏽", "e\u0301", "é", "中", "\u200d", "a", " ", "\n", REPLACEMENT]
)
TEXTS = st.text(max_size=20) | st.lists(RICH, max_size=12).map("".join)


def encode(tokenizer: TextTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.raw.encode(text).ids
    return ids


def push_all(tokenizer: TextTokenizer, prompt: list[int], ids: list[int]) -> tuple[list[str], str]:
    """The text of each push, none of which ends inside a character, and of the flush."""
    detokenizer = Detokenizer(tokenizer, prompt)
    pushed = [detokenizer.push(token) for token in ids]
    assert not any(text.endswith(REPLACEMENT) for text in pushed)
    flushed = detokenizer.flush()
    assert detokenizer.flush() == ""
    return pushed, flushed


@settings(max_examples=200, deadline=None)
@given(ids=BYTE_LEVEL_IDS, prompt=TEXTS)
@example(ids=[], prompt="")
def test_any_ids_of_a_byte_level_tokenizer(ids: list[int], prompt: str) -> None:
    """Also bytes that are no UTF-8 at all, and whatever the prompt ends with."""
    tokenizer = byte_level()
    pushed, flushed = push_all(tokenizer, encode(tokenizer, prompt), ids)
    assert "".join(pushed) + flushed == decode(tokenizer, ids)


class WindowsAlone:
    """A tokenizer that does not say that its decoder joins bytes: every token goes through a window."""

    joins_bytes = False

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.raw = tokenizer.raw
        self.decode, self.text_alone = tokenizer.decode, tokenizer.text_alone


@settings(max_examples=200, deadline=None)
@given(ids=BYTE_LEVEL_IDS | TEXTS.map(lambda text: encode(byte_level(), text)), prompt=TEXTS)
def test_looking_a_token_up_is_decoding_a_window(ids: list[int], prompt: str) -> None:
    """Push by push: not only the same text in the end."""
    tokenizer, prompt_ids = byte_level(), encode(byte_level(), prompt)
    assert tokenizer.joins_bytes
    slowly = push_all(cast("TextTokenizer", WindowsAlone(tokenizer)), prompt_ids, ids)
    assert push_all(tokenizer, prompt_ids, ids) == slowly


def test_only_a_decoder_that_joins_bytes_is_looked_up() -> None:
    assert not metaspace().joins_bytes
    assert not byte_fallback().joins_bytes


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, prompt=TEXTS)
@example(text=" world", prompt="hello " + REPLACEMENT)
@example(text=REPLACEMENT + " and on", prompt="x")
def test_any_text_comes_out_as_it_went_in(text: str, prompt: str) -> None:
    tokenizer = byte_level()
    pushed, flushed = push_all(tokenizer, encode(tokenizer, prompt), encode(tokenizer, text))
    assert "".join(pushed) + flushed == text
    assert set(flushed) <= {REPLACEMENT}, "only what looks like half a character waits for the end"


@pytest.mark.parametrize("text", ["😀", "é", "中", "👩‍👩‍👧"])
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    tokenizer = byte_level()
    alphabet = {token: i for token, i in tokenizer.raw.get_vocab().items() if len(token) == 1}
    by_byte = {decode_byte: i for i, decode_byte in bytes_of(alphabet).items()}
    detokenizer = Detokenizer(tokenizer, [])
    for character in text:
        encoded = character.encode()
        pushed = [detokenizer.push(by_byte[byte]) for byte in encoded]
        assert pushed == [""] * (len(encoded) - 1) + [character]


def bytes_of(alphabet: dict[str, int]) -> dict[int, int]:
    """Byte of each id of a byte-level alphabet: printable Latin-1 stands for itself, the rest from U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    byte_of = {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}
    return {i: byte_of[token] for token, i in alphabet.items() if token in byte_of}


def test_special_tokens_give_no_text() -> None:
    tokenizer = byte_level()
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    words = encode(tokenizer, "the cat")
    pushed, flushed = push_all(tokenizer, [bos], [bos, *words, eos])
    assert "".join(pushed) == "the cat"
    assert pushed[0] == pushed[-1] == flushed == ""


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    tokenizer = byte_level()
    ids = encode(tokenizer, "a\u4e00")  # a character without a merge: three tokens
    assert len(ids) == 4
    pushed, flushed = push_all(tokenizer, [], ids[:-1])
    assert ("".join(pushed), flushed) == ("a", REPLACEMENT)


WORDS = st.sampled_from(["\u2581the", "\u2581cat", "\u2581sat", "\u2581", "s", ".", EOS])


@given(prompt=st.lists(WORDS, min_size=1, max_size=12), output=st.lists(WORDS, max_size=20))
@example(prompt=["\u2581the", "\u2581cat"], output=["\u2581sat", "."])
def test_a_metaspace_decoder_keeps_the_first_space_thanks_to_the_prompt(
    prompt: list[str], output: list[str]
) -> None:
    tokenizer = metaspace()
    prompt_ids = [token_id(tokenizer, word) for word in ["\u2581the", *prompt]]
    ids = [token_id(tokenizer, word) for word in output]
    if not decode(tokenizer, prompt_ids[-8:]):
        return  # a prompt whose end has no text cannot say that something came before
    pushed, flushed = push_all(tokenizer, prompt_ids, ids)
    whole = decode(tokenizer, prompt_ids + ids)
    assert "".join(pushed) + flushed == whole[len(decode(tokenizer, prompt_ids)) :]


BYTES = st.integers(2, 257)


@settings(max_examples=150, deadline=None)
@given(prompt=st.text("ab 中😀é", max_size=12), text=st.text("ab 中😀é", max_size=12))
def test_a_byte_fallback_decoder_gives_the_text(prompt: str, text: str) -> None:
    """The prompt's last tokens may begin inside a character, which spoils the run of bytes after it."""
    tokenizer = byte_fallback()
    prompt_ids = encode(tokenizer, "a" + prompt.replace(" ", "\u2581"))
    pushed, flushed = push_all(tokenizer, prompt_ids, encode(tokenizer, text.replace(" ", "\u2581")))
    assert "".join(pushed) + flushed == text


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.sampled_from([2 + 0x41, 2 + 0xE2, 2 + 0x82, 2 + 0xAC, 1, 258]) | BYTES, max_size=20))
@example(ids=[2 + 0x41, 2 + 0xE2, 258])
def test_a_byte_fallback_decoder_that_takes_a_character_back_raises_nothing(ids: list[int]) -> None:
    """One bad byte makes its whole run unreadable, what was shown too; the rest is still shown."""
    tokenizer = byte_fallback()
    detokenizer = Detokenizer(tokenizer, [])
    text = "".join(detokenizer.push(token) for token in [*ids, 258, 258]) + detokenizer.flush()
    assert text.endswith("a")


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(TEXTS, min_size=1, max_size=4))
def test_special_tokens_that_are_shown_stand_between_the_texts(parts: list[str]) -> None:
    tokenizer = byte_level()
    shown = token_id(tokenizer, BOS)
    detokenizer = Detokenizer(tokenizer, [], {shown})
    ids = [token for part in parts for token in [*encode(tokenizer, part), token_id(tokenizer, EOS), shown]]
    text = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    assert text == "".join(f"{part}{BOS}" for part in parts)


def test_half_a_character_before_a_shown_token_is_not_lost() -> None:
    tokenizer = byte_level()
    shown = token_id(tokenizer, BOS)
    half = tokenizer.raw.encode("\U0001f980").ids[:1]
    detokenizer = Detokenizer(tokenizer, [], {shown})
    assert [detokenizer.push(token) for token in [*half, shown]] == ["", f"{REPLACEMENT}{BOS}"]
    assert detokenizer.flush() == ""
