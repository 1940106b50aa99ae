"""The tokens between the pages of a list that is ordered by name.

A token holds the last name of its page and a checksum: opaque to callers, good whatever came or went since,
and told apart from text that no list made.
"""

from __future__ import annotations

import base64
import binascii
import zlib

from llm_grpc.errors import InvalidParameter

_SUM_BYTES = 4


def after(name: str) -> str:
    """The token of the page that begins after ``name``."""
    data = name.encode()
    return base64.urlsafe_b64encode(zlib.crc32(data).to_bytes(_SUM_BYTES) + data).decode()


def name_of(token: str) -> str:
    """The name that the page of ``token`` begins after.

    Raises:
        InvalidParameter: ``after`` did not make it.
    """
    try:
        data = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        name = data[_SUM_BYTES:].decode()
    except (binascii.Error, UnicodeError):
        name = ""
    if not name or after(name) != token:
        raise InvalidParameter("page_token", "is no next_page_token of this list")
    return name
