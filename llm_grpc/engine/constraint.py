"""What the engine needs of whoever says which tokens may come next."""

from __future__ import annotations

from typing import Protocol


class TokenMask(Protocol):
    """Which tokens may come at one place; computed somewhere else, beside the step."""

    def wait(self) -> memoryview:
        """Bits as unsigned 32-bit numbers ``[ceil(vocabulary / 32)]``, the lowest of the first for token 0.

        At least one of a token of the vocabulary is set. Called once, from the engine's thread.
        """
        ...


class TokenConstraint(Protocol):
    """Holds one sequence to a form. Used by the engine's thread alone, once the sequence is submitted."""

    @property
    def is_complete(self) -> bool:
        """Whether the sequence has the form and no token may follow but an end-of-sequence one."""
        ...

    def start(self) -> TokenMask:
        """Begin to compute which tokens may come next; does not wait for it."""
        ...

    def advance(self, token: int) -> None:
        """The sequence has this token now, an end-of-sequence one too."""
        ...
