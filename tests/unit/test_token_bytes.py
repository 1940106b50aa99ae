"""The bytes of tokens, one after the other, are the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llm_grpc.engine.step_plan import TokenScore
from llm_grpc.text.text_delta import TextToken, TopToken
from llm_grpc.text.token_records import TokenRecords, records_of
from llm_grpc.text.tokenizer import TextTokenizer
from tests.unit.small_tokenizers import (
    BOS,
    EOS,
    SPACE,
    byte_fallback,
    byte_level,
    decode,
    load,
    metaspace,
    token_id,
)

BYTE_LEVEL = byte_level()
IDS = st.lists(st.integers(0, BYTE_LEVEL.raw.get_vocab_size() - 1), max_size=30)
TEXTS = st.text("ab 中😀é\ufffd", max_size=12)


def encode(tokenizer: TextTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.raw.encode(text).ids
    return ids


def told(tokenizer: TextTokenizer, ids: list[int], prompt: list[int] | None = None) -> list[TextToken]:
    """The records of generated ``ids``; the offset of each is where the one before it ends."""
    texts, records = TokenRecords(tokenizer, prompt or [], with_text=True), list[TextToken]()
    for token in ids:
        records.append(texts.record(token, None))
        texts.push(token)
    texts.flush(records)
    for before, after in pairwise(records):
        assert after.text_offset == before.text_offset + len(before.text)
    assert not records or records[0].text_offset == 0
    return records


def bytes_of(records: list[TextToken]) -> bytes:
    return b"".join(record.text for record in records)


@settings(max_examples=200, deadline=None)
@given(ids=IDS | TEXTS.map(lambda text: encode(BYTE_LEVEL, text)))
def test_any_ids_of_a_byte_level_tokenizer(ids: list[int]) -> None:
    """Also bytes that are no UTF-8: the text has U+FFFD for them, as for any decoder that replaces."""
    assert bytes_of(told(BYTE_LEVEL, ids)).decode(errors="replace") == decode(BYTE_LEVEL, ids)


def test_a_part_of_a_character_is_its_bytes() -> None:
    ids = encode(BYTE_LEVEL, "a\u4e00")
    assert [record.text for record in told(BYTE_LEVEL, ids)] == [b"a", b"\xe4", b"\xb8", b"\x80"]


def test_special_tokens_give_nothing_and_other_added_tokens_their_name() -> None:
    raw = Tokenizer.from_str(BYTE_LEVEL.raw.to_str())
    raw.add_tokens(["<tööl一>"])
    tokenizer = load(raw)
    ids = [token_id(tokenizer, name) for name in (BOS, "<tööl一>", EOS)]
    assert [record.text for record in told(tokenizer, ids)] == [b"", "<tööl一>".encode(), b""]
    assert decode(tokenizer, ids) == "<tööl一>"


@settings(max_examples=200, deadline=None)
@given(prompt=st.text("ab 中😀é", max_size=12), text=TEXTS)
def test_a_byte_fallback_tokenizer_tells_single_bytes(prompt: str, text: str) -> None:
    tokenizer = byte_fallback()
    ids = encode(tokenizer, text.replace(" ", SPACE))
    records = told(tokenizer, ids, encode(tokenizer, "a" + prompt.replace(" ", SPACE)))
    assert bytes_of(records) == text.encode()
    is_byte = [tokenizer.raw.id_to_token(token).startswith("<0x") for token in ids]
    assert all(len(record.text) == 1 for record, single in zip(records, is_byte, strict=True) if single)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(1, 265), max_size=20))
@example(ids=[2 + 0xE2, 258])
@example(ids=[2 + 0x41, 2 + 0xE2, 258])
def test_bytes_of_a_byte_fallback_tokenizer_that_are_no_character_stay_what_they_are(ids: list[int]) -> None:
    """A letter after them is still that letter, though its text comes together with theirs."""
    tokenizer = byte_fallback()
    records = told(tokenizer, ids, encode(tokenizer, "a"))
    for token, record in zip(ids, records, strict=True):
        if 2 <= token < 258:
            assert record.text == bytes([token - 2])
        elif token >= 258:
            assert record.text == bytes([ord("a") + token - 258])


@given(words=st.lists(st.sampled_from([f"{SPACE}the", f"{SPACE}cat", SPACE, "s", ".", EOS]), max_size=20))
def test_a_metaspace_tokenizer_tells_the_spaces_of_words(words: list[str]) -> None:
    tokenizer = metaspace()
    ids = [token_id(tokenizer, word) for word in words]
    prompt = [token_id(tokenizer, f"{SPACE}cat")]
    text = decode(tokenizer, prompt + ids)[len("cat") :]
    assert bytes_of(told(tokenizer, ids, prompt)) == text.encode()


@pytest.mark.parametrize(
    ("words", "told_of"), [(["s", "\ufffd"], ["s", "\ufffd"]), (["\ufffd", "s"], ["", "\ufffds"])]
)
def test_a_token_that_looks_like_half_a_character_is_told_when_it_is_shown(
    words: list[str], told_of: list[str]
) -> None:
    raw = Tokenizer.from_str(metaspace().raw.to_str())
    raw.add_tokens(["\ufffd"])
    tokenizer = load(raw)
    ids, prompt = [token_id(tokenizer, word) for word in words], [token_id(tokenizer, f"{SPACE}cat")]
    assert [record.text.decode() for record in told(tokenizer, ids, prompt)] == told_of


@pytest.mark.parametrize(
    ("tokenizer", "first", "tops"),
    [
        (BYTE_LEVEL, "a", {"b": b"b", " ": b" ", EOS: b""}),
        (metaspace(), f"{SPACE}the", {f"{SPACE}cat": b" cat", "s": b"s", EOS: b""}),
        (byte_fallback(), "a", {SPACE: b" ", "<0xE4>": b"\xe4", "b": b"b"}),
    ],
    ids=["byte level", "metaspace", "byte fallback"],
)
def test_tokens_that_could_have_been_have_the_bytes_that_they_would_have_given(
    tokenizer: TextTokenizer, first: str, tops: dict[str, bytes]
) -> None:
    if tokenizer is BYTE_LEVEL:
        tops = {("Ġ" if name == " " else name): data for name, data in tops.items()}
    ids = [token_id(tokenizer, first), token_id(tokenizer, next(iter(tops)))]
    top = tuple((token_id(tokenizer, name), -float(n)) for n, name in enumerate(tops))
    records = records_of(tokenizer, ids, [None, TokenScore(-0.5, top)], with_text=True)
    assert records[1].logprob == -0.5
    assert records[1].top == tuple(
        TopToken(token_id(tokenizer, name), -float(n), data) for n, (name, data) in enumerate(tops.items())
    )
    assert records[1].text == next(iter(tops.values()))


def test_without_text_there_are_ids_and_logprobs_alone() -> None:
    records = records_of(BYTE_LEVEL, [5, 6], [None, TokenScore(-1.0, ((7, -0.25),))], with_text=False)
    assert records == (TextToken(5), TextToken(6, -1.0, (TopToken(7, -0.25),)))
