"""Tokens of pages: each leads to the name that it was made of, and no other text to any."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.errors import InvalidParameter
from llm_grpc.server.page_token import after, name_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


@given(name=NAMES)
def test_a_token_leads_to_its_name(name: str) -> None:
    assert name_of(after(name)) == name


@given(name=NAMES, at=st.integers(0, 10**6), put=st.characters())
def test_a_token_with_another_character_leads_nowhere(name: str, at: int, put: str) -> None:
    token = after(name)
    at %= len(token)
    changed = token[:at] + put + token[at + 1 :]
    if changed != token:
        with pytest.raises(InvalidParameter) as error:
            name_of(changed)
        assert error.value.field == "page_token"


@given(text=st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_text_that_no_list_made_leads_nowhere(text: str) -> None:
    with pytest.raises(InvalidParameter):
        name_of(text)
