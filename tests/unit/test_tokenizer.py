from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.small_tokenizers import BOS, EOS, byte_level, metaspace, token_id

TEXTS = st.text(max_size=40)


@given(TEXTS)
def test_tokens_of_bytes_cover_the_text(text: str) -> None:
    """One after the other; those inside one character share its bytes."""
    tokens = byte_level().tokens(text, add_special_tokens=False)
    encoded, reached = text.encode(), 0
    for token in tokens:
        encoded[token.start : token.end].decode()
        assert token.start <= reached <= token.end
        assert token.start < token.end
        reached = token.end
    assert reached == len(encoded)


@given(TEXTS)
def test_tokens_are_those_of_a_prompt(text: str) -> None:
    tokenizer = byte_level()
    tokens = tokenizer.tokens(text, add_special_tokens=True)
    assert len(tokens) == tokenizer.count(text, add_special_tokens=True)
    assert tokenizer.text([token.id for token in tokens], keep_special_tokens=False) == text
    assert [token.id for token in tokens] == tokenizer.raw.encode(text).ids
    assert [tokenizer.name_of(token.id) for token in tokens] == [token.text for token in tokens]


async def test_long_prompts_have_the_tokens_of_short_ones() -> None:
    """They go another way."""
    tokenizer = byte_level(100_000)
    text = "the cat sat on the mat. \U0001f600 " * 300
    assert await tokenizer.encode(text) == tokenizer.raw.encode(text).ids
    assert (
        await tokenizer.encode(text, adds_special_tokens=False)
        == tokenizer.raw.encode(text, add_special_tokens=False).ids
    )


def test_special_tokens_are_found_by_their_names() -> None:
    tokenizer = metaspace()
    assert tokenizer.special_ids([BOS, "the", "nothing"]) == {token_id(tokenizer, BOS)}
    assert tokenizer.special_ids([]) == frozenset()
    assert tokenizer.text([token_id(tokenizer, EOS)], keep_special_tokens=True) == EOS
    assert tokenizer.text([token_id(tokenizer, EOS)], keep_special_tokens=False) == ""
    assert tokenizer.name_of(10_000) == ""
